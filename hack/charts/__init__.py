"""Generates files of the charts: the README of each chart."""
