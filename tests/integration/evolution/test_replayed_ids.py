"""Tests of `source.dedupe` with replays under the local runtime: later versions share the ids of counted events."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Producer

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.exhaustive]

EVENTS, BASE, MINUTE = 200, 1_700_000_000_000 // 3_600_000 * 3_600_000, 60_000


def test_copies_are_duplicates_after_a_replay_and_in_later_versions(
    orders: Callable[[], dict[str, Any]],
    make_local: Callable[..., Any],
    make_evolving: Callable[..., Any],
    servers: Any,
) -> None:
    """Repeated events count twice without dedupe, and once after a replay with it.

    They do not count again in the version after that.
    """
    document = orders()
    document["spec"]["source"]["fields"].append({"name": "id", "type": "string"})
    evolving = make_evolving(make_local(document))
    local = evolving.local
    local.settle()
    producer = Producer({"bootstrap.servers": servers.kafka})
    sent = 0

    def send() -> None:
        nonlocal sent
        for n in range(EVENTS):
            event = {"id": f"id-{n}", "ts": BASE + n % 60 * MINUTE, "shop": "abc"[n % 3], "amount": 1}
            producer.produce("evolve.orders.events", json.dumps(event).encode(), partition=n % 3)
        assert producer.flush(30) == 0
        sent += EVENTS
        query = "SELECT coalesce(sum(consumed), 0)::bigint FROM {s}._offsets WHERE reader = 'live'"
        local.eventually(lambda: local.query(query) == [(sent,)], seconds=60, what=f"{sent} records are read")

    def total(version: int) -> int:
        return sum(number for number, _ in evolving.stored(f"by_shop_v{version}").values())

    def ids() -> dict[int, str]:
        return dict(local.query("SELECT version, coalesce(ids, reader) FROM {s}._aggregations ORDER BY 1"))

    send()
    send()
    assert total(1) == 2 * EVENTS
    evolving.edit(lambda spec: spec["source"].update(dedupe={"field": "id", "window": "2h"}))
    local.settle()
    evolving.ask()
    evolving.until_switched(2)
    assert total(2) == EVENTS
    name = ids()[2]
    assert name.startswith("replay-")
    send()
    assert total(2) == EVENTS
    evolving.edit(lambda spec: spec["aggregations"][0]["window"].update(size="20m"))
    evolving.until_switched(3)
    assert ids()[3] == name
    send()
    assert total(3) == 0
