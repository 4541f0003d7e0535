"""What happens to a pipeline, its topic or its request while a replay runs: it ends exact, or without a trace."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from kafka_admin import KafkaAdmin
from tidemill_contract import names
from tidemill_operator.plan.replay import DONE, REPLAYING
from tidemill_operator.reconcile import PAUSE, release
from tidemill_operator.settings import Platform

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.exhaustive]

TOPIC = "evolve.orders.events"


def begin(evolving: Any, load: Any, *, events: int = 10_000, rate: int = 1_000) -> dict[str, Any]:
    """A replay that has counted something and will not be done for some seconds; its status."""
    load.rate = rate // 5
    load.send(events)
    evolving.await_events(load)
    evolving.ask(rate=rate)
    evolving.replay()
    # A pass takes its time where much else runs; the replay would be over by then.
    counted = "SELECT sum(consumed) > 0 FROM {s}._offsets WHERE reader <> 'live'"
    evolving.local.eventually(lambda: evolving.local.query(counted) == [(True,)], seconds=60, what="it has begun")
    status = evolving.replay()
    assert (status["phase"], status["left"] > 0) == (REPLAYING, True)
    return dict(status)


@pytest.mark.matrix
def test_kafka_gets_more_partitions(evolving: Any, load: Any, counted: Callable[..., Any], servers: Any) -> None:
    """Behind our back: the replay goes on, and takes the new ones as well."""
    before = begin(evolving, load)
    KafkaAdmin(servers.kafka).grow(TOPIC, 5)
    load.spread_over(5)
    load.start()
    evolving.until_switched(2)
    load.finish()
    evolving.await_events(load)
    assert evolving.replay() == {"reader": before["reader"], "phase": DONE}
    assert evolving.stored("by_shop_v2") == counted(load.events, 10)
    assert evolving.local.query("SELECT count(*) FROM {s}._offsets") == [(5,)]


def test_the_spec_asks_for_more_partitions(evolving: Any, load: Any, counted: Callable[..., Any]) -> None:
    """An edit that processors have to know of begins it anew."""
    before = begin(evolving, load)
    evolving.edit(lambda spec: spec["source"]["topic"].update(partitions=4))
    evolving.local.settle()
    load.spread_over(4)
    load.start()
    assert evolving.replay()["reader"] != before["reader"]
    evolving.local.eventually(lambda: evolving.replay()["phase"] == DONE, seconds=90, what="the replay is done")
    evolving.local.settle()
    load.finish()
    evolving.await_events(load)
    assert evolving.stored(f"by_shop_v{evolving.versions()['by_shop']}") == counted(load.events, 10)


def test_retention_is_faster(evolving: Any, load: Any, counted: Callable[..., Any], servers: Any) -> None:
    """What the topic ceases to hold before it is read is told, during the replay and after it; the rest is exact."""
    begin(evolving, load, events=20_000, rate=2_000)
    # What its process has read ahead is not lost; another one has read nothing ahead.
    evolving.edit(lambda spec: spec.update(suspend=True))
    evolving.local.settle()
    # Partitions need not be read evenly: of the one that is furthest behind there is most to lose.
    behind = "SELECT partition FROM {s}._offsets WHERE reader <> 'live' ORDER BY coalesce(next_offset, 0) LIMIT 1"
    ((expiring,),) = evolving.local.query(behind)
    admin = AdminClient({"bootstrap.servers": servers.kafka})
    for future in admin.delete_records([TopicPartition(TOPIC, expiring, 6_000)]).values():
        future.result(30)
    evolving.edit(lambda spec: spec.update(suspend=False))
    evolving.local.eventually(lambda: evolving.replay().get("missed"), seconds=60, what="it is told")
    rows = evolving.local.query("SELECT reader, partition, from_offset, to_offset, reason FROM {s}._lost")
    ((reader, partition, first, end, reason),) = rows
    assert (reader, partition, end, reason) == (evolving.replay()["reader"], expiring, 6_000, "expired")
    told = f"events that the topic no longer holds are not counted (offsets {expiring}: {first} to 6000)"
    assert evolving.replay()["missed"] == told
    evolving.until_switched(2)
    assert evolving.replay() == {"reader": reader, "phase": DONE, "missed": told}
    whole, found = counted(load.events, 10), evolving.stored("by_shop_v2")
    assert sum(number for number, _ in found.values()) == len(load.events) - (end - first)
    assert all(number <= whole[key][0] for key, (number, _) in found.items())
    assert evolving.stored("by_shop_v1") == whole
    # No event was lost to live traffic.
    assert "EventsLost" not in evolving.local.reconcile()


def test_another_one_is_asked_for(evolving: Any, load: Any, counted: Callable[..., Any]) -> None:
    """The annotation is another text: what the first one filled goes, and the second one is done."""
    first = begin(evolving, load)
    load.start()
    evolving.ask(rate=30_000)
    second = evolving.replay()
    assert first["reader"] != second["reader"]
    evolving.local.eventually(lambda: evolving.replay()["phase"] == DONE, seconds=90, what="the replay is done")
    evolving.local.settle()
    load.finish()
    evolving.await_events(load)
    version = second["versions"]["by_shop"]
    assert evolving.versions() == {"by_shop": version}
    assert evolving.stored(f"by_shop_v{version}") == counted(load.events, 10)
    assert evolving.local.query("SELECT reader FROM {s}._readers ORDER BY 1") == [("live",), (second["reader"],)]


def test_taken_back_and_asked_for_again(evolving: Any, load: Any, counted: Callable[..., Any]) -> None:
    """The same text as before is another replay once it was away."""
    begin(evolving, load)
    asked = evolving.local.document["metadata"]["annotations"]
    evolving.annotate()
    evolving.local.reconcile()
    evolving.annotate(**asked)
    load.start()
    evolving.local.eventually(lambda: evolving.replay().get("phase") == DONE, seconds=90, what="the replay is done")
    evolving.local.settle()
    load.finish()
    evolving.await_events(load)
    assert evolving.stored(f"by_shop_v{evolving.versions()['by_shop']}") == counted(load.events, 10)


def test_suspended_meanwhile(evolving: Any, load: Any, counted: Callable[..., Any]) -> None:
    """It stands still, as all of the pipeline does, and goes on where it was."""
    begin(evolving, load)
    evolving.edit(lambda spec: spec.update(suspend=True))
    evolving.local.settle()
    stands = evolving.replay()
    assert not [name for name in evolving.local.pids() if name.startswith(("replay", "processor"))]
    load.send(2_000)
    assert evolving.replay() == stands
    evolving.edit(lambda spec: spec.update(suspend=False))
    load.start()
    evolving.until_switched(2)
    load.finish()
    evolving.await_events(load)
    assert evolving.replay() == {"reader": stands["reader"], "phase": DONE}
    assert evolving.stored("by_shop_v2") == counted(load.events, 10)


def test_paused_meanwhile(evolving: Any, load: Any, counted: Callable[..., Any]) -> None:
    """Processes go on and partitions are handed over, but nothing is switched until the pause is over."""
    reader = begin(evolving, load)["reader"]
    asked = evolving.local.document["metadata"]["annotations"]
    evolving.annotate(**asked, **{PAUSE: "true"})
    load.start()

    def handed() -> bool:
        assert "ReconciliationPaused" in evolving.local.reconcile()
        query = "SELECT count(*) FROM {s}._offsets WHERE reader = 'live' AND cardinality(feeds) > 0"
        return bool(evolving.local.query(query) == [(3,)])

    evolving.local.eventually(handed, seconds=90, what="all partitions are handed over")
    assert evolving.versions() == {"by_shop": 1}
    evolving.annotate(**asked)
    evolving.until_switched(2)
    load.finish()
    evolving.await_events(load)
    assert evolving.replay() == {"reader": reader, "phase": DONE}
    assert evolving.stored("by_shop_v2") == counted(load.events, 10)


def test_a_refused_edit_meanwhile(evolving: Any, load: Any, counted: Callable[..., Any]) -> None:
    """The spec accepted before runs on, and its replay with it."""
    reader = begin(evolving, load)["reader"]
    evolving.edit(lambda spec: spec["source"].update(key="shop"))
    assert "Stalled" in evolving.local.reconcile()

    def done() -> bool:
        return bool(evolving.replay()["phase"] == DONE)

    evolving.local.eventually(done, seconds=90, what="the replay is done")
    assert (evolving.replay()["reader"], evolving.versions()) == (reader, {"by_shop": 2})
    load.send(1_000)
    evolving.await_events(load)
    assert evolving.stored("by_shop_v2") == counted(load.events, 10)


@pytest.mark.parametrize("policy", ["Delete", "Retain"])
def test_deleted_meanwhile(evolving: Any, load: Any, policy: str, servers: Any) -> None:
    """Processes end; what the policy keeps is as it was, and nothing waits for the replay any more."""
    reader = begin(evolving, load)["reader"]
    local = evolving.local
    evolving.edit(lambda spec: spec.update(reclaimPolicy=policy))
    local.settle()
    release(local.document, platform=Platform(), actuators=local.actuators)
    assert local.pids() == {}
    topics = AdminClient({"bootstrap.servers": servers.kafka}).list_topics(timeout=10).topics
    schemas = local.query("SELECT 1 FROM pg_namespace WHERE nspname = 'evolve__orders'")
    assert (TOPIC in topics, len(schemas)) == ((False, 0) if policy == "Delete" else (True, 1))
    if policy == "Retain":
        # The pipeline is made anew, by the same name: the replay was asked of the one before.
        evolving.annotate()
        local.settle()
        assert local.query("SELECT count(*) FROM {s}._readers WHERE reader = '" + reader + "'") == [(0,)]
        assert "replay" not in local.status


def test_no_offsets_are_left_in_kafka(evolving: Any, load: Any, servers: Any) -> None:
    """A group without members and offsets is taken away by Kafka itself."""
    reader = begin(evolving, load)["reader"]
    evolving.until_switched(2)
    admin = AdminClient({"bootstrap.servers": servers.kafka})
    group = names.consumer_group("evolve", "orders", reader)
    (found,) = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)]).values()
    assert found.result(30).topic_partitions == []


def test_final_answers_of_before_are_not_given_again(
    make_local: Callable[..., Any], orders: Callable[[], Any], make_evolving: Callable[..., Any], servers: Any
) -> None:
    """Neither from the cache, however long it keeps answers, nor by a 304 for their ETag."""
    document = orders()
    document["spec"]["api"]["cacheTtl"] = "1h"
    document["spec"]["source"]["topic"]["partitions"] = 1
    evolving = make_evolving(make_local(document))
    evolving.local.settle()
    base = 1_700_000_400_000
    producer = Producer({"bootstrap.servers": servers.kafka})
    for ts, amount in [(base, 10), (base + 1, 60), (base + 4 * 3_600_000, 1)]:
        producer.produce(TOPIC, json.dumps({"ts": ts, "shop": "a", "amount": amount}).encode(), partition=0)
    assert producer.flush(30) == 0
    url, query = f"{evolving.local.url('api')}/aggregates/by_shop", {"from": base, "to": base + 600_000}

    def ask(**headers: str) -> httpx.Response:
        return httpx.get(url, params=query, headers=headers, timeout=30, trust_env=False)

    # Asked before the window is closed, an answer would be kept for an hour.
    closed = "SELECT closed_until > 1700001600000 FROM {s}._aggregations"
    evolving.local.eventually(lambda: evolving.local.query(closed) == [(True,)], what="the window is closed")
    first = ask()
    assert ([row["orders"] for row in first.json()["data"]], first.headers["cache-control"]) == (
        [2],
        "public, max-age=60",
    )
    assert ask(**{"If-None-Match": first.headers["etag"]}).status_code == 304
    evolving.edit(lambda spec: spec.update(transform={"filter": "amount >= 50"}))
    evolving.local.settle()
    evolving.ask()
    evolving.until_switched(2)

    def another() -> bool:
        answer = ask(**{"If-None-Match": first.headers["etag"]})
        return bool(answer.status_code == 200 and [row["orders"] for row in answer.json()["data"]] == [1])

    evolving.local.eventually(another, seconds=10, what="the new version's answer")


def test_several_processes(evolving: Any, load: Any, counted: Callable[..., Any]) -> None:
    """A replay has as many as live traffic; one that dies leaves its partitions to the others."""
    load.send(200_000)
    load.start()
    evolving.edit(lambda spec: spec["processor"].update(replicas=2))
    evolving.local.settle()
    evolving.ask()
    evolving.replay()
    evolving.local.eventually(lambda: evolving.local.pids().get("replay-1"), what="the second one runs")
    os.kill(evolving.local.pids()["replay-1"], signal.SIGKILL)
    evolving.until_switched(2)
    load.finish()
    evolving.await_events(load)
    assert evolving.stored("by_shop_v2") == counted(load.events, 10)


def test_from_where_live_traffic_is_not_yet(evolving: Any, load: Any, counted: Callable[..., Any]) -> None:
    """It waits there, counts nothing of before, and hands over when live traffic has come."""
    load.send(3_000)
    evolving.await_events(load)
    live = evolving.local.pids()["processor-0"]
    os.kill(live, signal.SIGSTOP)
    try:
        load.send(3_000)
        load.flush()
        # Kafka's clock is this machine's; records come by their milliseconds.
        moment = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1)
        while dt.datetime.now(dt.UTC) < moment:
            time.sleep(0.05)
        before = len(load.events)
        load.send(3_000)
        load.flush()
        evolving.ask(**{"from": moment.isoformat()})
        ahead = (
            "SELECT count(*) FROM {s}._offsets r JOIN {s}._offsets l USING (partition)"
            " WHERE r.reader <> 'live' AND l.reader = 'live' AND r.next_offset > l.next_offset"
        )

        def waits() -> bool:
            evolving.local.reconcile()
            return bool(evolving.local.query(ahead) == [(3,)])

        evolving.local.eventually(waits, seconds=60, what="it stands where live traffic is not yet")
        time.sleep(1.0)
        assert evolving.replay()["processed"] == 0
    finally:
        os.kill(live, signal.SIGCONT)
    load.start()
    evolving.until_switched(2)
    load.finish()
    evolving.await_events(load)
    assert evolving.stored("by_shop_v2") == counted(load.events[before:], 10)


def test_a_topic_that_ends_in_markers(
    make_local: Callable[..., Any], orders: Callable[[], Any], make_evolving: Callable[..., Any], servers: Any
) -> None:
    """Live traffic began at the end, behind a transaction's marker, where no record comes to stand: nothing waits."""
    topic = "evolve.foreign"
    KafkaAdmin(servers.kafka).create(topic)
    producer = Producer({"bootstrap.servers": servers.kafka, "transactional.id": "markers"})
    producer.init_transactions(30)
    producer.begin_transaction()
    for number in range(100):
        producer.produce(topic, json.dumps({"ts": 1_700_000_000_000, "shop": "a", "amount": number}).encode())
    producer.commit_transaction(30)
    document = orders()
    document["spec"]["source"]["topic"] = {"name": topic, "managed": False, "startFrom": "latest"}
    evolving = make_evolving(make_local(document))
    evolving.local.settle()
    query = "SELECT next_offset FROM {s}._offsets WHERE reader = 'live'"
    evolving.local.eventually(lambda: evolving.local.query(query) == [(101,)], what="live traffic stands at the end")
    evolving.ask()
    evolving.until_switched(2)
    assert sum(number for number, _ in evolving.stored("by_shop_v2").values()) == 100
