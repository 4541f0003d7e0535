"""Tables that only pipelines with certain members of `spec.source` have."""
