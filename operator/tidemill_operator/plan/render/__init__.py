"""Pure: renders workloads as Kubernetes manifests. No client, no clock."""
