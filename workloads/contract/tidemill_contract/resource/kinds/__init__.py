"""The kinds of windows, detectors and metrics. Each kind has a class with exactly its members."""
