"""Ways to the agent in an environment: over HTTP, and in memory for tests."""
