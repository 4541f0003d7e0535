"""The benchmark's window in Quix Streams, with its tumbling window. State is in RocksDB with changelogs.

The program prints `FIRST <cpu seconds>` on its first record, so that the start is not counted.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import quixstreams.dataframe.windows.aggregations as agg
from quixstreams import Application

_begun = False


def event_time(value: Any, headers: Any, timestamp: float, timestamp_type: Any) -> int:
    global _begun
    if not _begun:
        _begun = True
        print(f"FIRST {time.process_time()}", flush=True)
    return int(value["ts"])


def result(window: Any, key: Any, timestamp: int, headers: Any) -> dict[str, Any]:
    return {"page": key, **window}


def main() -> int:
    app = Application(
        broker_address=os.environ["BROKER"],
        consumer_group=os.environ["GROUP"],
        auto_offset_reset="earliest",
        state_dir=os.environ["STATE"],
        loglevel="WARNING",
        producer_extra_config={"acks": "all"},
    )
    source = app.topic(
        os.environ["IN"], value_deserializer="json", key_deserializer="str", timestamp_extractor=event_time
    )
    sink = app.topic(os.environ["OUT"], value_serializer="json", key_serializer="str")
    windows = (
        app.dataframe(source)
        .tumbling_window(duration_ms=int(os.environ["WINDOW_MS"]), grace_ms=int(os.environ["GRACE_MS"]))
        .agg(n=agg.Count(), total=agg.Sum("latency_ms"), low=agg.Min("latency_ms"), high=agg.Max("latency_ms"))
        .final(closing_strategy="partition")
        .apply(result, metadata=True)
    )
    windows.to_topic(sink)
    app.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
