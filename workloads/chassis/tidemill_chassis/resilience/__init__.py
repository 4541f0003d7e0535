"""Circuit breakers, retries, timeouts and deadlines, and their settings."""
