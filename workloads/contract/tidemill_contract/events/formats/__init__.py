"""How the values of records are written: envelopes, CSV, the framing of schema registries."""
