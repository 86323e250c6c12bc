"""The way to the model: the relay that keeps the provider's key, and the scripted model."""
