"""Read the formats of records: envelopes, CSV, and the framing of schema registries."""
