"""The stream processor of one pipeline: reads events from Kafka and merges them into windows in Postgres."""

import os

# Limit Polars to one thread: it gets a few thousand rows at a time, where more threads would use much more CPU and save
# little time. By default, Polars starts a thread for each core of the node, even in a small container. Polars reads the
# variable on its first import.
os.environ.setdefault("POLARS_MAX_THREADS", "1")
