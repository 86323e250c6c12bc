"""Turns: from a message to its last event, whoever listens."""
