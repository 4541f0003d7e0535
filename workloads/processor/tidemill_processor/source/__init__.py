"""The source topic: its consumer, the positions read from, and the backlog."""
