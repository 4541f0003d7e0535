"""The rules of the Python stage."""
