"""What agentd remembers of sessions and turns, in one SQLite file."""
