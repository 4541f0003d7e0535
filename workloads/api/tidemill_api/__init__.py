"""Postgres and Redis → REST, WebSocket, SSE and the dashboard."""
