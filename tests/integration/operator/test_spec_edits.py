"""Edits of a running pipeline: what each changes in Kafka, in Postgres and among the processes, and what stays."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]

EVENTS = "edits.orders.events"
DOCUMENT: dict[str, Any] = {
    "apiVersion": "tidemill.dev/v1alpha1",
    "kind": "AnalyticsPipeline",
    "metadata": {"name": "orders", "namespace": "edits", "uid": "uid-1", "generation": 1},
    "spec": {
        "source": {
            "topic": {"partitions": 3},
            "fields": [
                {"name": "ts", "type": "timestamp", "required": True},
                {"name": "shop", "type": "string"},
                {"name": "amount", "type": "integer"},
            ],
            "eventTime": {"field": "ts"},
        },
        "aggregations": [
            {
                "name": "by_shop",
                "groupBy": ["shop"],
                "window": {"type": "tumbling", "size": "1h"},
                "metrics": [{"name": "orders", "function": "count"}],
            }
        ],
    },
}


class Edited:
    """A pipeline that runs, is sent events, and is edited."""

    def __init__(self, local: Any) -> None:
        self.local = local
        self.sent = 0

    def edit(self, change: Callable[[dict[str, Any]], Any]) -> None:
        """The next generation."""
        document = copy.deepcopy(self.local.document)
        change(document["spec"])
        document["metadata"]["generation"] += 1
        self.local.document = document

    def send(self, number: int = 50) -> None:
        """Events of one shop, 3 each, and wait until they are counted."""
        events = [{"ts": "2026-03-01T10:00:00Z", "shop": "a", "amount": 3} for _ in range(number)]
        answer = httpx.post(f"{self.local.url('ingest')}/events", json=events, timeout=30, trust_env=False)
        assert answer.json()["accepted"] == number
        self.sent += number
        self.local.eventually(lambda: self.local.consumed() == self.sent, what=f"{self.sent} events are counted")

    def topic_config(self, key: str) -> str:
        """A config of the source topic as Kafka has it."""
        return str(self.local.actuators.kafka.configs([EVENTS])[EVENTS][key])

    def unchanged(self, change: Callable[[dict[str, Any]], Any]) -> None:
        """An edit after which the same processes run."""
        before = self.local.pids()
        self.edit(change)
        assert set(self.local.settle()) == WELL
        assert self.local.pids() == before
        self.send()


WELL = {"Ready", "TopicsReady", "SchemaReady", "ProcessorsReady", "IngestReady", "APIReady"}
METRIC = {"name": "sales", "function": "sum", "field": "amount"}


def put(member: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    """Sets a member of the spec; the objects on the way are made."""
    *way, last = member.split(".")

    def edit(spec: dict[str, Any]) -> None:
        for part in way:
            spec = spec[int(part)] if isinstance(spec, list) else spec.setdefault(part, {})
        spec[last] = value

    return edit


@pytest.fixture
def running(make_local: Callable[..., Any]) -> Edited:
    """A pipeline that is ready and has counted events."""
    local = make_local(DOCUMENT)
    found = Edited(local)
    assert set(local.settle()) == WELL
    found.send()
    return found


def test_what_processors_do_not_read_ends_none(running: Edited) -> None:
    """Kafka, Postgres, ingest and API are told, each by itself; the processes are those of before."""
    running.unchanged(put("reclaimPolicy", "Delete"))
    running.unchanged(put("source.topic.retention", "1d"))
    assert running.topic_config("retention.ms") == "86400000"
    running.unchanged(put("aggregations.0.retention", "30d"))
    assert running.local.query("SELECT retention_ms FROM {s}._aggregations") == [(30 * 86_400_000,)]
    running.unchanged(put("api.cacheTtl", "1s"))
    running.unchanged(put("processor.resources", {"limits": {"memory": "1Gi"}}))
    assert running.local.query("SELECT generation FROM {s}._generation") == [(1,)]
    # Ingest reads by itself that it has to ask for keys now.
    before = running.local.pids()
    running.edit(put("auth.required", True))
    running.local.settle()
    url = f"{running.local.url('ingest')}/events"
    running.local.eventually(
        lambda: httpx.post(url, json=[], timeout=30, trust_env=False).status_code == 401, what="keys are asked for"
    )
    assert running.local.pids() == before


def test_more_replicas_leave_the_first_alone(running: Edited) -> None:
    before = running.local.pids()
    running.edit(put("processor.replicas", 2))
    running.local.settle()
    after = running.local.pids()
    assert after.keys() == {*before, "processor-1"}
    assert {name: after[name] for name in before} == before
    running.send()
    running.edit(put("processor.replicas", 1))
    running.local.settle()
    assert running.local.pids() == before
    running.send()


def test_what_processors_read_starts_them_anew(running: Edited) -> None:
    """A metric: a column and another processor; ingest and API go on. An aggregation: a table."""
    before = running.local.pids()
    running.edit(lambda spec: spec["aggregations"][0]["metrics"].append(METRIC))
    running.local.settle()
    after = running.local.pids()
    assert after["processor-0"] != before["processor-0"]
    assert {**after, "processor-0": None} == {**before, "processor-0": None}
    running.send()
    assert running.local.query("SELECT sum(_count), sum(_sum_amount) FROM {s}.by_shop_v1") == [(100, 150)]
    running.edit(lambda spec: spec["aggregations"].append({**spec["aggregations"][0], "name": "all", "groupBy": []}))
    running.local.settle()
    running.send()
    assert running.local.query("SELECT sum(_count) FROM {s}.all_v1") == [(50,)]


def test_another_type_of_a_field_begins_anew(running: Edited) -> None:
    """Also where only sketches are over it: an integer and a double of equal value are one value, not two."""
    distinct = {"name": "amounts", "function": "distinct", "field": "amount"}
    running.edit(lambda spec: spec["aggregations"][0]["metrics"].append(distinct))
    running.local.settle()
    assert running.local.status["aggregations"][0]["version"] == 1
    running.edit(put("source.fields.2.type", "number"))
    running.local.settle()
    assert running.local.status["aggregations"][0]["version"] == 2
    running.send()
    answer = httpx.get(f"{running.local.url('api')}/aggregates/by_shop", timeout=30, trust_env=False)
    assert [(row["orders"], row["amounts"]) for row in answer.json()["data"]] == [(50, 1)]


REFUSED: list[tuple[str, Any, str]] = [
    ("source.topic.partitions", 2, "spec.source.topic.partitions: 2 is less than the 3 partitions"),
    ("source.topic.name", "edits.other", f"spec.source.topic.name: changed from {EVENTS} to edits.other"),
    ("source.key", "shop", "spec.source.key: changed from none to shop"),
]


def test_good_bad_good(running: Edited) -> None:
    """What is refused changes nothing, and the pipeline counts on; taken back, all is as it was."""
    good, told, before = running.local.document, running.local.status, running.local.pids()
    schema = stored(running)
    for member, value, text in REFUSED:
        running.edit(put(member, value))
        found = running.local.settle()
        assert (set(found), found["Stalled"]) == ({*WELL, "Stalled"}, "NotSupported"), member
        message = running.local.message("Stalled")
        assert message.startswith(text)
        assert message.endswith("; the accepted spec stays in force")
        assert running.local.pids() == before
        running.send(10)
        generation = running.local.document["metadata"]["generation"] + 1
        running.local.document = {**good, "metadata": {**good["metadata"], "generation": generation}}
        assert set(running.local.settle()) == WELL
        assert running.local.pids() == before
    assert stored(running) == schema
    assert settled(running.local.status) == settled(told)
    running.send(10)
    assert running.local.query("SELECT sum(_count) FROM {s}.by_shop_v1") == [(running.sent,)]


def stored(running: Edited) -> Any:
    """What the operator has made in Postgres; how far events are read and windows closed is the processor's."""
    found = running.local.actuators.postgres.observe(running.local.schema)
    return found.owner, found.generation, found.accepted, found.partitions, found.shapes, found.columns, found.feeds


def settled(status: Any) -> Any:
    """A status without the generation it is about, and without how far windows are closed."""
    conditions = [{**item, "observedGeneration": None} for item in status["conditions"]]
    return {**status, "conditions": conditions, "observedGeneration": None, "aggregations": None}
