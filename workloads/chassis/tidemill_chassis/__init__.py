"""What every service is made of: web server, authorisation, breakers, health, metrics."""
