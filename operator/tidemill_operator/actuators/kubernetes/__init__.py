"""Kubernetes: a pipeline's workloads and what stands around them."""
