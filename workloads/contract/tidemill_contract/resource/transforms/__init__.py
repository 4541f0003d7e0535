"""The rules of `spec.transform` that have no place among the rules of fields and metrics."""
