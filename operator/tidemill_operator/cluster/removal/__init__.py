"""What happens when a pipeline or the operator is removed."""
