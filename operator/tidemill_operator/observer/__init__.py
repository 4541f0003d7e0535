"""Measure how far pipelines are behind, independently of their processors."""
