"""A live pipeline gets another window in the cluster and is replayed under load, as users do it: with kubectl."""

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
    """A pipeline of two processors, in a namespace of its own."""
    namespace = world.new_namespace("replay")
    sent = world.pipeline(orders("orders", namespace, processor={"flushInterval": "250ms", "replicas": 2}))
    yield sent
    sent.platform.leave()
    world.drop_namespaces([namespace])


def test_another_window_and_a_replay(
    world: Any, shop: Any, some_orders: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    """The new window has all events, those of before the edit as well; the other aggregation is left alone."""
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
        what="its processors are gone",
    )
    shop.check()
