"""Test of a running pipeline in the cluster whose window is changed, and which is replayed with kubectl under load."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes, pytest.mark.slow]

_EVENTS, _MORE = 20_000, 3_000


@pytest.fixture
def shop(world: Any, orders: Callable[..., Any]) -> Iterator[Any]:
    """Create a pipeline with two processors in a new namespace."""
    namespace = world.new_namespace("replay")
    sent = world.pipeline(orders("orders", namespace, processor={"flushInterval": "250ms", "replicas": 2}))
    yield sent
    sent.platform.leave()
    world.begin_to_delete_namespaces([namespace])


def test_a_replay_under_load_counts_all_events_in_the_new_window(
    world: Any, shop: Any, some_orders: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    """The new windows have the events before and after the edit. The other aggregation keeps its version."""
    platform = shop.platform
    shop.send(some_orders(_EVENTS))
    platform.document["spec"]["aggregations"][0]["window"]["size"] = "2m"
    platform.apply()
    where = ("analyticspipeline", platform.name, "--namespace", platform.namespace)
    request = json.dumps({"aggregations": ["by_country"]})
    phases = []

    def done() -> bool:
        replay = world.json("get", *where)["status"].get("replay", {})
        phases.append(replay.get("phase"))
        return bool(replay.get("phase") == "Done")

    with shop.load(some_orders(_MORE, after=_EVENTS), seconds=15.0):
        begun = time.monotonic()
        world.kubectl("annotate", *where, f"tidemill.dev/replay={request}")
        eventually(done, what="the replay is done")
        took = time.monotonic() - begun
    assert "Replaying" in phases
    world.figures["a replay in the cluster"] = f"{shop.number} events, done after {took:.1f} s"
    world.kubectl("wait", *where, "--for=condition=Ready", "--timeout=120s")
    status = world.json("get", *where)["status"]
    versions = {item["name"]: item["version"] for item in status["aggregations"]}
    assert versions == {"by_country": 3, "overall": 1}
    assert "missed" not in status["replay"]
    eventually(
        lambda: not world.get("deployment", f"{platform.name}-replay", platform.namespace),
        what="the processors of the replay are gone",
    )
    shop.check()
