"""The way to push services and webhooks."""
