"""Kubernetes for development and tests: builds its programs, and runs a control plane or a whole cluster."""
