"""Reconciles AnalyticsPipeline resources, on Kubernetes and on one machine, by the same code."""
