"""From neutral workloads to what a cluster is told: pure functions, no client, no clock."""
