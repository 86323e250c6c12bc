"""The agent: one goose process, spoken to by ACP, started clean and ended with all it made."""
