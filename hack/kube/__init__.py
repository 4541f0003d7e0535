"""A Kubernetes for development and tests: the cluster's programs, a control plane alone, a cluster on this machine."""
