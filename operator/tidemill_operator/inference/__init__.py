"""Drafts a pipeline from sampled events."""
