"""The stream processor of one pipeline: reads events from Kafka and merges them into windows in Postgres."""

import os

# One Polars thread is fastest for a few thousand rows. Polars reads POLARS_MAX_THREADS only on its first import.
os.environ.setdefault("POLARS_MAX_THREADS", "1")
