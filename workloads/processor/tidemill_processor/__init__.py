"""Kafka → windows → Postgres: the stream processor of one pipeline."""

import os

# Polars works on pieces of a few thousand rows: handing them to threads costs more CPU than it saves time, and a
# container would get a thread for each core of its node. Read when polars is first imported.
os.environ.setdefault("POLARS_MAX_THREADS", "1")
