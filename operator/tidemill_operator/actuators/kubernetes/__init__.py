"""Kubernetes: a pipeline's workloads, and the Services, policies and Secrets around them."""
