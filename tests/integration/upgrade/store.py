"""Writes the stored installation again with the current code: `pytest tests/integration/upgrade/store.py`.

pytest does not collect this file by itself, since the stored installation has to be that of an earlier Tidemill.
"""

from __future__ import annotations

import datetime as dt
import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

STORED = Path(__file__).parent / "stored"
MINUTE = 60_000
BASE = 1_700_000_000_000 // (6 * 60 * MINUTE) * 6 * 60 * MINUTE
LATE = 3


def _events() -> list[dict[str, Any]]:
    """Return two waves of events for two partitions; the waves overlap, and some events of the second are late."""
    draw, events = random.Random(13), []
    for wave, first, last, number in ((1, 0, 180, 45), (2, 150, 300, 45)):
        for n in range(number):
            minute = first + (last - first) * n // number
            at = minute * MINUTE + draw.randrange(-20 * MINUTE, 20 * MINUTE)
            events.append(_event(draw, wave, BASE + 60 * MINUTE + at, n))
        # The last events of both partitions have the same time.
        for partition in (0, 1):
            events.append(_event(draw, wave, BASE + (60 + last + 25) * MINUTE + partition, partition))
        for n in range(LATE * (wave - 1)):
            events.append(_event(draw, wave, BASE + (60 + 10 * n) * MINUTE, n))
    return events


def _event(draw: random.Random, wave: int, at: int, n: int) -> dict[str, Any]:
    sent = dt.datetime.fromtimestamp(at / 1000, dt.UTC) - dt.timedelta(seconds=draw.randrange(100))
    event = {
        "ts": at,
        "shop": draw.choice(["a", "b", "ü", None]),
        "amount": draw.choice([None, 1, 2, 2, 3, -7, 2**40]),
        "price": draw.choice([None, 0.5, 1.25, 9.99, 100.0]),
        "home": draw.randrange(100),
        "at_home": draw.randrange(100),
        "paid": draw.choice([True, False]),
        "sent": sent.isoformat(timespec="milliseconds"),
    }
    return {"wave": wave, "partition": n % 2, "event": {k: v for k, v in event.items() if v is not None}}


def test_store(make_installation: Callable[..., Any], stored_document: Callable[[], dict[str, Any]]) -> None:
    """Run both waves, and write the answers after each and a dump after the first."""
    events = _events()
    (STORED / "events.ndjson").write_text("".join(json.dumps(e, ensure_ascii=False) + "\n" for e in events))
    installation = make_installation(stored_document())
    installation.local.settle()
    answers, sent = [], 0
    for wave in (1, 2):
        installation.produce(wave)
        sent += sum(event["wave"] == wave for event in events)
        installation.local.eventually(lambda: installation.settled(sent), what=f"wave {wave} is settled")  # noqa: B023
        answers.append(installation.answers())
        if wave == 1:
            address = installation.local.servers.postgres
            command = ["pg_dump", "--inserts", "--schema=stored__orders", f"--dbname={address.url}"]
            dump = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            (STORED / "installation.sql").write_text(installation.stored_text(dump))
    lines = ["[" + ",\n".join(json.dumps(rows, ensure_ascii=False) for rows in wave) + "]" for wave in answers]
    (STORED / "answers.json").write_text("[" + ",\n\n".join(lines) + "]\n")
