"""The HTTP side of agentd: the application, its routes, its streams."""
