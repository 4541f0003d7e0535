"""Builds the images of Tidemill, and of the servers in a development cluster."""
