"""How events arrive, other than as records that others write to the topic: the members of `spec.source` for this."""
