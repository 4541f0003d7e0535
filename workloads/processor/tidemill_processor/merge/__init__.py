"""Merges the events of a batch into the rows of windows."""
