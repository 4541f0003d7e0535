"""This machine: a pipeline's workloads as child processes, its secrets as files."""
