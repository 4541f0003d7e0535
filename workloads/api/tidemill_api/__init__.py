"""The query API: answers from Postgres over REST, live changes over WebSocket and SSE, and the dashboard."""
