"""The HTTP routes: each handler reads the request, makes one call, and answers."""
