"""Actuators for a pipeline's workloads, Services, policies and Secrets in Kubernetes."""
