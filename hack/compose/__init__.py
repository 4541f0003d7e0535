"""The compose files as Compose reads them, and what their texts say on this machine, without containers."""
