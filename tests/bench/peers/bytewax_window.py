"""The benchmark's window in Bytewax: one worker, an event clock a key, orjson. Run by `python -m bytewax.run`.

Says `FIRST <cpu seconds>` on its first record. With TAIL=1 it follows the topic, else it ends where the topic ends.
Runs in an environment of its own (hack/requirements/peers.txt).
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


def merge(one: Any, other: Any) -> Any:
    if one is None or other is None:
        return one or other
    return one[0] + other[0], one[1] + other[1], min(one[2], other[2]), max(one[3], other[3])


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
