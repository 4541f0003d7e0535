"""The only code of the operator that reads and changes external systems."""
