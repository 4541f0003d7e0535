"""Windows, detectors and metrics: a class a kind, with the members that it has and no others."""
