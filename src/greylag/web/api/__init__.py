"""The routes of the JSON API: each parses, makes one call, and answers."""
