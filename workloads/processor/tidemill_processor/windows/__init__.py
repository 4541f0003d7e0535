"""Whole windows, read out of the tables."""
