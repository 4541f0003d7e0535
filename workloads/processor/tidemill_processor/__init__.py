"""The stream processor of one pipeline: reads events from Kafka, and merges them into windows in Postgres."""

import os

# Polars uses one thread, because it works on a few thousand rows at a time: more threads would cost more CPU than they
# save time, and a container would get a thread for each core of its node. Polars reads the variable when it is first
# imported.
os.environ.setdefault("POLARS_MAX_THREADS", "1")
