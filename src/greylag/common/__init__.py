"""What the platform and agentd both use, and what knows neither of them."""
