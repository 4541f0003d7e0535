"""The member `spec.lookups`: reference data that is joined to events."""
