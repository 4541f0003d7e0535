"""The REST routes, their OpenAPI description, and HTTP answers."""
