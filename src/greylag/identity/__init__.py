"""Who people are, by the word of an identity provider."""
