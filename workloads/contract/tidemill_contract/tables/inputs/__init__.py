"""Tables that a pipeline has only if `spec.source` contains certain members, such as `dedupe`."""
