"""The REST routes, their description, and answers as HTTP."""
