"""The benchmark's window in Bytewax: one worker, an event clock for each key, orjson.

`python -m bytewax.run` runs the module in a separate environment (hack/requirements/peers.txt). The module prints
`FIRST <cpu seconds>` on its first record. With TAIL=1 it follows the topic, otherwise it ends at the topic's end.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import bytewax.operators as op
import bytewax.operators.windowing as win
import orjson
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource
from bytewax.dataflow import Dataflow

WINDOW_MS, GRACE_MS = int(os.environ["WINDOW_MS"]), int(os.environ["GRACE_MS"])
BROKERS = [os.environ["BROKER"]]
_begun = False


def parse(message: Any) -> tuple[str, tuple[datetime, float]]:
    global _begun
    if not _begun:
        _begun = True
        print(f"FIRST {time.process_time()}", flush=True)
    event = orjson.loads(message.value)
    return event["page"], (datetime.fromtimestamp(event["ts"] / 1000, UTC), event["latency_ms"])


def fold(sums: Any, event: tuple[datetime, float]) -> Any:
    value = event[1]
    if sums is None:
        return 1, value, value, value
    n, total, low, high = sums
    return n + 1, total + value, value if value < low else low, value if value > high else high


def merge(left: Any, right: Any) -> Any:
    if left is None or right is None:
        return left or right
    return left[0] + right[0], left[1] + right[1], min(left[2], right[2]), max(left[3], right[3])


def result(keyed: Any) -> Any:
    page, (window, (n, total, low, high)) = keyed
    value = {"page": page, "start": window * WINDOW_MS, "n": n, "total": total, "low": low, "high": high}
    return KafkaSinkMessage(page.encode(), orjson.dumps(value))


flow = Dataflow("bench")
source = KafkaSource(BROKERS, [os.environ["IN"]], tail=os.environ.get("TAIL") == "1", batch_size=5_000)
events = op.map("parse", op.input("in", flow, source), parse)
clock = win.EventClock(ts_getter=lambda event: event[0], wait_for_system_duration=timedelta(milliseconds=GRACE_MS))
windower = win.TumblingWindower(
    length=timedelta(milliseconds=WINDOW_MS), align_to=datetime(1970, 1, 1, tzinfo=UTC)
)  # fmt: skip
windows = win.fold_window(
    "windows", events, clock, windower, builder=lambda: None, folder=fold, merger=merge, ordered=False
)
results = op.map("result", windows.down, result)
op.output("out", results, KafkaSink(BROKERS, os.environ["OUT"], add_config={"acks": "all"}))
