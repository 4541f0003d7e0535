"""Render workloads as Kubernetes manifests."""
