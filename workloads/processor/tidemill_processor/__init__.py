"""The stream processor of one pipeline: reads events from Kafka, and merges them into windows in Postgres."""

import os

# Polars uses one thread, because it works on a few thousand rows at a time: more threads would take much more CPU and
# save little time. By default, Polars would start a thread for each core of the node, also in a small container. Polars
# reads the variable when it is first imported.
os.environ.setdefault("POLARS_MAX_THREADS", "1")
