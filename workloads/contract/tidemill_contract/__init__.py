"""What the operator writes and the workloads read: the resource model, names, configs, events, resilience."""
