"""The dashboard: server-rendered pages of users and projects, live without a reload."""
