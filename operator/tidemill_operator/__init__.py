"""Reconcile AnalyticsPipeline resources, in a cluster or on one machine."""
