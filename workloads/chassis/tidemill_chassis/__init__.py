"""The code that all services share: web server, authorisation, circuit breakers, health and metrics."""
