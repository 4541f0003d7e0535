"""Run a pipeline's workloads as child processes of this machine, and keep its secrets in files."""
