"""Runs a whole cluster as processes of root on this machine, and removes all of its traces."""
