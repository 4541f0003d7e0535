"""What the operator, the processor and the API must agree on about shared tables."""
