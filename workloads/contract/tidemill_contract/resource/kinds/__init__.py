"""The kinds of windows, detectors and metrics, each with its own class."""
