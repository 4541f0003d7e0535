"""Reconciles AnalyticsPipeline resources with the same code on Kubernetes and on one machine."""
