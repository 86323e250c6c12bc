"""What turns changed in the workspace: kept states, what differs between them, undo."""
