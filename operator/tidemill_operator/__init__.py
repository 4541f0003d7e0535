"""Reconciles AnalyticsPipeline resources. The same code runs in a cluster and on one machine."""
