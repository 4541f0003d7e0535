"""Windows, detectors and metrics: one class for each kind, with exactly the members of that kind."""
