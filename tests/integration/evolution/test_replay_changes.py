"""Tests of changes to a pipeline, its topic or its request during a replay, on real servers.

A replay that completes is exact. A replay that is dropped leaves nothing.
"""

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
    """Start a replay that takes some seconds, wait until it has counted events, and return its status."""
    load.rate = rate // 5
    load.send(events)
    evolving.await_events(load)
    evolving.ask(rate=rate)
    evolving.replay()
    # The wait needs no pass: on a busy machine, the replay could end during one.
    counted = "SELECT sum(consumed) > 0 FROM {s}._offsets WHERE reader <> 'live'"
    evolving.local.eventually(
        lambda: evolving.local.query(counted) == [(True,)], seconds=60, what="the replay has begun"
    )
    status = evolving.replay()
    assert (status["phase"], status["left"] > 0) == (REPLAYING, True)
    return dict(status)


@pytest.mark.matrix
def test_a_replay_includes_partitions_that_are_added_in_kafka(
    evolving: Any, load: Any, counted: Callable[..., Any], servers: Any
) -> None:
    """The replay continues with the same reader although the operator has not added the partitions."""
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


def test_an_edit_of_the_partitions_restarts_the_replay(evolving: Any, load: Any, counted: Callable[..., Any]) -> None:
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


def test_events_that_expire_before_a_replay_reads_them_are_reported(
    evolving: Any, load: Any, counted: Callable[..., Any], servers: Any
) -> None:
    """The status names the lost offsets during the replay and after it. All other events are counted exactly."""
    begin(evolving, load, events=20_000, rate=2_000)
    # A process of the replay has events in memory. A restart drops them.
    evolving.edit(lambda spec: spec.update(suspend=True))
    evolving.local.settle()
    # The replay may be ahead in some partitions. In the partition with the lowest offset, most events can expire.
    behind = "SELECT partition FROM {s}._offsets WHERE reader <> 'live' ORDER BY coalesce(next_offset, 0) LIMIT 1"
    ((expiring,),) = evolving.local.query(behind)
    admin = AdminClient({"bootstrap.servers": servers.kafka})
    for future in admin.delete_records([TopicPartition(TOPIC, expiring, 6_000)]).values():
        future.result(30)
    evolving.edit(lambda spec: spec.update(suspend=False))
    evolving.local.eventually(lambda: evolving.replay().get("missed"), seconds=60, what="the loss is in the status")
    rows = evolving.local.query("SELECT reader, partition, from_offset, to_offset, reason FROM {s}._lost")
    ((reader, partition, first, end, reason),) = rows
    assert (reader, partition, end, reason) == (evolving.replay()["reader"], expiring, 6_000, "expired")
    missed = f"events that the topic no longer holds are not counted (offsets {expiring}: {first} to 6000)"
    assert evolving.replay()["missed"] == missed
    evolving.until_switched(2)
    assert evolving.replay() == {"reader": reader, "phase": DONE, "missed": missed}
    whole, replayed = counted(load.events, 10), evolving.stored("by_shop_v2")
    assert sum(number for number, _ in replayed.values()) == len(load.events) - (end - first)
    assert all(number <= whole[key][0] for key, (number, _) in replayed.items())
    assert evolving.stored("by_shop_v1") == whole
    # Live processors have lost no event.
    assert "EventsLost" not in evolving.local.reconcile()


def test_a_new_request_replaces_the_replay(evolving: Any, load: Any, counted: Callable[..., Any]) -> None:
    """An annotation with another text is a new request. The first replay's version and reader are deleted."""
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


def test_a_request_that_is_removed_and_repeated_is_a_new_replay(
    evolving: Any, load: Any, counted: Callable[..., Any]
) -> None:
    """The repeated annotation has the same text."""
    begin(evolving, load)
    annotations = evolving.local.document["metadata"]["annotations"]
    evolving.annotate()
    evolving.local.reconcile()
    evolving.annotate(**annotations)
    load.start()
    evolving.local.eventually(lambda: evolving.replay().get("phase") == DONE, seconds=90, what="the replay is done")
    evolving.local.settle()
    load.finish()
    evolving.await_events(load)
    assert evolving.stored(f"by_shop_v{evolving.versions()['by_shop']}") == counted(load.events, 10)


def test_a_replay_stops_while_the_pipeline_is_suspended(evolving: Any, load: Any, counted: Callable[..., Any]) -> None:
    """It continues from its positions afterwards."""
    begin(evolving, load)
    evolving.edit(lambda spec: spec.update(suspend=True))
    evolving.local.settle()
    stopped = evolving.replay()
    assert not [name for name in evolving.local.pids() if name.startswith(("replay", "processor"))]
    load.send(2_000)
    assert evolving.replay() == stopped
    evolving.edit(lambda spec: spec.update(suspend=False))
    load.start()
    evolving.until_switched(2)
    load.finish()
    evolving.await_events(load)
    assert evolving.replay() == {"reader": stopped["reader"], "phase": DONE}
    assert evolving.stored("by_shop_v2") == counted(load.events, 10)


def test_a_replay_does_not_switch_versions_while_reconciliation_is_paused(
    evolving: Any, load: Any, counted: Callable[..., Any]
) -> None:
    """Its processes continue and hand over their partitions. The versions switch after the pause."""
    reader = begin(evolving, load)["reader"]
    annotations = evolving.local.document["metadata"]["annotations"]
    evolving.annotate(**annotations, **{PAUSE: "true"})
    load.start()

    def handed() -> bool:
        assert "ReconciliationPaused" in evolving.local.reconcile()
        query = "SELECT count(*) FROM {s}._offsets WHERE reader = 'live' AND cardinality(feeds) > 0"
        return bool(evolving.local.query(query) == [(3,)])

    evolving.local.eventually(handed, seconds=90, what="all partitions are handed over")
    assert evolving.versions() == {"by_shop": 1}
    evolving.annotate(**annotations)
    evolving.until_switched(2)
    load.finish()
    evolving.await_events(load)
    assert evolving.replay() == {"reader": reader, "phase": DONE}
    assert evolving.stored("by_shop_v2") == counted(load.events, 10)


def test_a_replay_completes_after_a_refused_edit(evolving: Any, load: Any, counted: Callable[..., Any]) -> None:
    """The last accepted spec remains in force."""
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
def test_a_pipeline_can_be_deleted_during_a_replay(evolving: Any, load: Any, policy: str, servers: Any) -> None:
    """All processes end. The policy decides about topic and schema, and a recreated pipeline has no replay."""
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
        # A pipeline with the same name is created. The request was for the deleted pipeline.
        evolving.annotate()
        local.settle()
        assert local.query("SELECT count(*) FROM {s}._readers WHERE reader = '" + reader + "'") == [(0,)]
        assert "replay" not in local.status


def test_a_replay_leaves_no_committed_offsets_in_kafka(evolving: Any, load: Any, servers: Any) -> None:
    """Kafka then deletes the consumer group, which has no members either."""
    reader = begin(evolving, load)["reader"]
    evolving.until_switched(2)
    admin = AdminClient({"bootstrap.servers": servers.kafka})
    group = names.consumer_group("evolve", "orders", reader)
    (future,) = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)]).values()
    assert future.result(30).topic_partitions == []


def test_a_replay_invalidates_cached_answers_of_final_windows(
    make_local: Callable[..., Any], orders: Callable[[], Any], make_evolving: Callable[..., Any], servers: Any
) -> None:
    """The API answers neither from its cache of an hour nor with 304 for the former ETag."""
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

    # The API would cache an answer from before the window is closed for an hour.
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

    def answered_from_new_version() -> bool:
        answer = ask(**{"If-None-Match": first.headers["etag"]})
        return bool(answer.status_code == 200 and [row["orders"] for row in answer.json()["data"]] == [1])

    evolving.local.eventually(answered_from_new_version, seconds=10, what="the API answers from the new version")


def test_a_replay_survives_the_death_of_one_of_several_processes(
    evolving: Any, load: Any, counted: Callable[..., Any]
) -> None:
    """A replay has as many processes as `processor.replicas`. The others take over the partitions of a dead process."""
    load.send(200_000)
    load.start()
    evolving.edit(lambda spec: spec["processor"].update(replicas=2))
    evolving.local.settle()
    evolving.ask()
    evolving.replay()
    evolving.local.eventually(lambda: evolving.local.pids().get("replay-1"), what="the second process runs")
    os.kill(evolving.local.pids()["replay-1"], signal.SIGKILL)
    evolving.until_switched(2)
    load.finish()
    evolving.await_events(load)
    assert evolving.stored("by_shop_v2") == counted(load.events, 10)


def test_a_replay_from_a_moment_ahead_of_live_processors_waits_for_them(
    evolving: Any, load: Any, counted: Callable[..., Any]
) -> None:
    """It counts no event before that moment, and hands over when live processors arrive there."""
    load.send(3_000)
    evolving.await_events(load)
    live = evolving.local.pids()["processor-0"]
    os.kill(live, signal.SIGSTOP)
    try:
        load.send(3_000)
        load.flush()
        # Kafka uses the clock of this machine, with a precision of milliseconds.
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

        evolving.local.eventually(waits, seconds=60, what="the replay is ahead of the live processor")
        time.sleep(1.0)
        assert evolving.replay()["processed"] == 0
    finally:
        os.kill(live, signal.SIGCONT)
    load.start()
    evolving.until_switched(2)
    load.finish()
    evolving.await_events(load)
    assert evolving.stored("by_shop_v2") == counted(load.events[before:], 10)


def test_a_replay_ends_at_a_transaction_marker_at_the_end_of_the_topic(
    make_local: Callable[..., Any], orders: Callable[[], Any], make_evolving: Callable[..., Any], servers: Any
) -> None:
    """Live processors started after the marker, at an offset that no record has. The replay must not wait for one."""
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
    evolving.local.eventually(lambda: evolving.local.query(query) == [(101,)], what="live processors are at the end")
    evolving.ask()
    evolving.until_switched(2)
    assert sum(number for number, _ in evolving.stored("by_shop_v2").values()) == 100
