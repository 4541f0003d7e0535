"""Live changes over WebSockets and server-sent events."""
