"""The kinds of windows, detectors and metrics, with a class for the members of each kind."""
