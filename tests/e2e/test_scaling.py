"""Ten times the load in the cluster: the operator's own scaling follows, few changes, every event counted.

Each processor has a tenth of a core, as a container's limit gives it, and looks at each event's text for many words:
one of them is too slow then for a load that the rest of the machine hardly notices. How fast one is is measured first.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import polars as pl
import pytest

from demo.answers import positions
from demo.runtime import DemoError, until

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.load]

_CPU = "100m"
_PARTITIONS = 12
_FOLLOW_SECONDS, _CATCH_UP_SECONDS, _STABILIZATION_SECONDS = 120.0, 60.0, 30.0
_LAG_THRESHOLD = 20_000
_MOST_REBALANCES, _MOST_DOWN = 3, 2
_HIGH_SECONDS, _LOOKBACK_SECONDS = 75.0, 15.0
_TRIED = 15_000
_LOW_SHARE = 0.2
_WORDS = [f"error{number}" for number in range(32)]
# A stack trace, say: none of the words is in it, so all of it is looked at for each.
_TEXT = " at orders.basket.Checkout.pay(Checkout.java:118) after 31 ms, card of the customer was asked again;" * 7
_SCALING = {
    "lagThreshold": _LAG_THRESHOLD,
    "pollInterval": "2500ms",
    "lookback": f"{_LOOKBACK_SECONDS:g}s",
    "catchUp": f"{_CATCH_UP_SECONDS:g}s",
    "scaleUpCooldown": "15s",
    "scaleDownStabilization": f"{_STABILIZATION_SECONDS:g}s",
}


@pytest.fixture
def shop(world: Any, orders: Callable[..., Any]) -> Iterator[Any]:
    """A pipeline with one processor, in a namespace of its own."""
    namespace = world.new_namespace("tenfold")
    sent = world.pipeline(dear(orders("orders", namespace), most=1))
    yield sent
    sent.platform.leave()
    world.drop_namespaces([namespace])


def test_ten_times_the_load_is_followed(
    world: Any, shop: Any, some_orders: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    """One processor does a fifth of what it can; then ten times that comes in one step, and then nothing.

    That is too much for one, even if its best seconds were better than it can keep up, and leaves four enough room to
    work off what came before they were there.
    """
    rate = speed(shop, events(some_orders, _TRIED))
    dear(shop.platform.document, most=4)
    shop.platform.apply()
    time.sleep(_LOOKBACK_SECONDS)  # what was sent to measure it is no load
    low = int(rate * _LOW_SHARE)
    high = low * 10
    with shop.load(events(some_orders, 15 * low, after=shop.number), seconds=15.0):
        seen = watch(world, shop, seconds=15.0)
    assert {replicas for _, replicas, _ in seen if replicas} == {1}, "a tenth of the load is one processor's"
    with shop.load(events(some_orders, round(_HIGH_SECONDS * high), after=shop.number), seconds=_HIGH_SECONDS):
        seen = watch(world, shop, seconds=_HIGH_SECONDS)
    seen += watch(world, shop, seconds=_CATCH_UP_SECONDS, after=_HIGH_SECONDS, enough=_LAG_THRESHOLD)
    most = max(replicas for _, replicas, _ in seen)
    followed = next(at for at, replicas, _ in seen if replicas == most)
    over = [at for at, _, lag in seen if lag > _LAG_THRESHOLD]
    found = world.get("analyticspipeline", shop.platform.name, shop.platform.namespace)
    why = found["status"].get("scaling", {}).get("message")
    ended = time.monotonic()
    eventually(lambda: running(world, shop) == 1, what="one processor is enough again", seconds=180.0)
    world.figures["ten times the load"] = (
        f"{low} -> {high} events/s, one processor does {rate:.0f}: {most} processors ready after {followed:.0f} s, lag"
        f" {max(lag for _, _, lag in seen):,} at most; one again {time.monotonic() - ended:.0f} s after the end"
    )
    assert most > 1, "one processor is too slow"
    assert followed <= _FOLLOW_SECONDS
    assert (over[-1] - followed if over else 0.0) <= _CATCH_UP_SECONDS
    assert seen[-1][2] <= _LAG_THRESHOLD
    changes = told(world, shop)
    assert len([after for before, after in changes if after > before]) <= _MOST_REBALANCES, changes
    downs = [after for before, after in changes if after < before]
    # On a busy machine the last of the load comes late, and two are enough for it before one is.
    assert downs[-1:] == [1], f"down to one; under load: {why}"
    assert len(downs) <= _MOST_DOWN, f"{downs}; under load: {why}"
    shop.check()


def dear(made: dict[str, Any], *, most: int) -> dict[str, Any]:
    """A pipeline whose events are dear, on processors with little, of which there may be so many."""
    source, aggregations = made["spec"]["source"], made["spec"]["aggregations"]
    source["topic"]["partitions"] = _PARTITIONS
    if len(source["fields"]) == 4:
        source["fields"].append({"name": "message", "type": "string", "required": True})
        failed = {"name": "failed", "function": "sum", "field": _WORDS[0]}
        for aggregation in aggregations:
            aggregation["metrics"] = [*aggregation["metrics"], failed]
    derive = [{"name": word, "expression": f"message ILIKE '%{word}%'"} for word in _WORDS]
    processor = {"flushInterval": "250ms", "resources": {"limits": {"cpu": _CPU}}}
    made["spec"] |= {
        "transform": {"derive": derive},
        "processor": processor | {"scaling": {**_SCALING, "maxReplicas": most}},
    }
    return made


def events(some_orders: Callable[..., Any], number: int, **more: int) -> pl.DataFrame:
    """So many orders, each with a text; every eleventh one has a word that is looked for."""
    row = pl.int_range(pl.len())
    found = pl.when(row % 11 == 0).then(pl.lit(_WORDS[0].upper())).otherwise(pl.lit(""))
    frame = some_orders(number, **more)
    return frame.with_columns(message=pl.concat_str(pl.lit(_TEXT), found))


def speed(shop: Any, frame: pl.DataFrame) -> float:
    """Events a second that one processor does of many that are there at once, in its best three seconds.

    A mean would also count what else the machine does, and ten times a share of it be too little for four.
    """
    seen = [(time.monotonic(), counted(shop))]
    shop.send(frame)
    last = shop.totals.acknowledged

    def done() -> bool:
        now, there = time.monotonic(), counted(shop)
        if there > seen[-1][1]:
            seen.append((now, there))
        return there >= last

    until(done, seconds=180.0, what="all that was sent is counted")
    pairs = ((before, after) for before in seen for after in seen if after[0] - before[0] >= 3.0)
    return max((after[1] - before[1]) / (after[0] - before[0]) for before, after in pairs)


def counted(shop: Any) -> int:
    """Events of the topic that the results hold."""
    with httpx.Client(timeout=60.0, trust_env=False) as client:
        return sum(positions(client, shop.platform).values())


def running(world: Any, shop: Any) -> int:
    """Processors that are ready, as the Deployment says; zero while they are being made more or fewer."""
    found = world.get("deployment", f"{shop.platform.name}-processor", shop.platform.namespace)
    ready = found.get("status", {}).get("readyReplicas", 0)
    return int(ready) if ready == found["spec"]["replicas"] else 0


def lag(shop: Any) -> int:
    """Events in the topic that are not counted yet."""
    return sum(shop.platform.topic_ends().values()) - counted(shop)


def watch(
    world: Any, shop: Any, *, seconds: float, after: float = 0.0, enough: int = -1
) -> list[tuple[float, int, int]]:
    """What is seen every few seconds, for so many seconds or until the lag is little enough.

    Seconds since the beginning, which was so many seconds before; processors (zero: they change); lag.
    """
    began, seen = time.monotonic() - after, []
    while time.monotonic() - began < after + seconds and not (seen and seen[-1][2] <= enough):
        try:
            replicas, behind = running(world, shop), lag(shop)
        except (DemoError, httpx.TransportError):
            continue  # asked again
        seen.append((time.monotonic() - began, replicas, behind))
        time.sleep(2.0)
    return seen


def told(world: Any, shop: Any) -> list[tuple[int, int]]:
    """Changes of processors that Events tell of, in order: before and after."""
    found = world.json("get", "events", "--namespace", shop.platform.namespace)["items"]
    texts = [event["message"] for event in sorted(found, key=lambda event: str(event["firstTimestamp"]))]
    changes = [re.match(r"(\d+) → (\d+) processors", text) for text in texts]
    return [(int(change[1]), int(change[2])) for change in changes if change]
