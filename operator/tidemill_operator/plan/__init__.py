"""Pure: (spec, platform) → desired topics, schema, workloads."""
