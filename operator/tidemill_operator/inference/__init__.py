"""Drafts a pipeline from sampled events: fields, paths, types, formats, key, event time, window and metrics."""
