"""Container images: those of Tidemill, and those of the servers that a development cluster runs."""
