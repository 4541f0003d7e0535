"""A batch's events into the rows of windows."""
