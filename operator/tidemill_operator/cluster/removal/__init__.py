"""Removes pipelines' data, and the operator itself."""
