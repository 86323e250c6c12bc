"""The way to the agent in an environment."""
