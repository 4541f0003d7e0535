"""Run the workloads of pipelines as child processes, and keep the pipelines' secrets in files."""
