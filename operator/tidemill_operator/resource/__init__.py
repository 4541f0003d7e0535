"""Generate the CRD and the reference pages from the model."""
