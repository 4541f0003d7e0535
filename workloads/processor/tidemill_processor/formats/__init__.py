"""The client of the schema registry, and the readers of record formats with schemas."""
