"""Tests of edits of a running pipeline on real servers: which processes restart, and what changes on the servers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from pipelines.orders_by_shop import orders_by_shop

pytestmark = [pytest.mark.integration, pytest.mark.slow]

EVENTS = "edits.orders.events"
DOCUMENT = orders_by_shop("edits", amount="integer")


class Edited:
    """A running pipeline that the test edits and sends events to."""

    def __init__(self, local: Any) -> None:
        self.local = local
        self.sent = 0

    def edit(self, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change the spec, and increase the generation."""
        document = copy.deepcopy(self.local.document)
        change(document["spec"])
        document["metadata"]["generation"] += 1
        self.local.document = document

    def send(self, number: int = 50) -> None:
        """Send events of one shop with the amount 3, and wait until they are counted."""
        events = [{"ts": "2026-03-01T10:00:00Z", "shop": "a", "amount": 3} for _ in range(number)]
        answer = httpx.post(f"{self.local.url('ingest')}/events", json=events, timeout=30, trust_env=False)
        assert answer.json()["accepted"] == number
        self.sent += number
        self.local.eventually(lambda: self.local.consumed() == self.sent, what=f"{self.sent} events are counted")

    def topic_config(self, key: str) -> str:
        """Return a setting of the source topic from Kafka."""
        return str(self.local.actuators.kafka.configs([EVENTS])[EVENTS][key])

    def edit_and_keep_processes(self, change: Callable[[dict[str, Any]], Any]) -> None:
        """Apply an edit, and assert that the same processes run after it."""
        before = self.local.pids()
        self.edit(change)
        assert set(self.local.settle()) == WELL
        assert self.local.pids() == before
        self.send()


WELL = {"Ready", "TopicsReady", "SchemaReady", "ProcessorsReady", "IngestReady", "APIReady"}
METRIC = {"name": "sales", "function": "sum", "field": "amount"}


def setting(member: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    """Return an edit that sets a member of the spec, and creates missing objects above it."""
    *parents, last = member.split(".")

    def edit(spec: dict[str, Any]) -> None:
        for part in parents:
            spec = spec[int(part)] if isinstance(spec, list) else spec.setdefault(part, {})
        spec[last] = value

    return edit


@pytest.fixture
def running(make_local: Callable[..., Any]) -> Edited:
    """Start a pipeline, and wait until it is ready and has counted events."""
    local = make_local(DOCUMENT)
    edited = Edited(local)
    assert set(local.settle()) == WELL
    edited.send()
    return edited


def test_an_edit_that_processors_do_not_read_restarts_no_process(running: Edited) -> None:
    """Only Kafka, Postgres, ingest or the API apply the edit."""
    running.edit_and_keep_processes(setting("reclaimPolicy", "Delete"))
    running.edit_and_keep_processes(setting("source.topic.retention", "1d"))
    assert running.topic_config("retention.ms") == "86400000"
    running.edit_and_keep_processes(setting("aggregations.0.retention", "30d"))
    assert running.local.query("SELECT retention_ms FROM {s}._aggregations") == [(30 * 86_400_000,)]
    running.edit_and_keep_processes(setting("api.cacheTtl", "1s"))
    running.edit_and_keep_processes(setting("processor.resources", {"limits": {"memory": "1Gi"}}))
    assert running.local.query("SELECT generation FROM {s}._generation") == [(1,)]
    # Ingest reads the new config by itself, and requires keys.
    before = running.local.pids()
    running.edit(setting("auth.required", True))
    running.local.settle()
    url = f"{running.local.url('ingest')}/events"
    running.local.eventually(
        lambda: httpx.post(url, json=[], timeout=30, trust_env=False).status_code == 401, what="ingest requires keys"
    )
    assert running.local.pids() == before


def test_a_change_of_replicas_keeps_the_first_processor(running: Edited) -> None:
    before = running.local.pids()
    running.edit(setting("processor.replicas", 2))
    running.local.settle()
    after = running.local.pids()
    assert after.keys() == {*before, "processor-1"}
    assert {name: after[name] for name in before} == before
    running.send()
    running.edit(setting("processor.replicas", 1))
    running.local.settle()
    assert running.local.pids() == before
    running.send()


def test_an_edit_that_processors_read_restarts_only_processors(running: Edited) -> None:
    """A new metric adds a column, and a new aggregation adds a table."""
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


def test_a_changed_field_type_starts_a_new_version_of_the_aggregation(running: Edited) -> None:
    """This holds also if only a sketch uses the field. Otherwise an integer and an equal double would count as two."""
    distinct = {"name": "amounts", "function": "distinct", "field": "amount"}
    running.edit(lambda spec: spec["aggregations"][0]["metrics"].append(distinct))
    running.local.settle()
    assert running.local.status["aggregations"][0]["version"] == 1
    running.edit(setting("source.fields.2.type", "number"))
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


def test_a_refused_edit_changes_nothing_and_can_be_reverted(running: Edited) -> None:
    """The pipeline counts events meanwhile."""
    good, status, before = running.local.document, running.local.status, running.local.pids()
    schema = stored(running)
    for member, value, text in REFUSED:
        running.edit(setting(member, value))
        reasons = running.local.settle()
        assert (set(reasons), reasons["Stalled"]) == ({*WELL, "Stalled"}, "NotSupported"), member
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
    assert without_progress(running.local.status) == without_progress(status)
    running.send(10)
    assert running.local.query("SELECT sum(_count) FROM {s}.by_shop_v1") == [(running.sent,)]


def stored(running: Edited) -> Any:
    """Return the state in Postgres that the operator writes; the processor writes offsets and closed windows."""
    live = running.local.actuators.postgres.observe(running.local.schema)
    return live.owner, live.generation, live.accepted, live.partitions, live.shapes, live.columns, live.fill_histories


def without_progress(status: Any) -> Any:
    """Return a status without its generation and without the progress of aggregations."""
    conditions = [{**item, "observedGeneration": None} for item in status["conditions"]]
    return {**status, "conditions": conditions, "observedGeneration": None, "aggregations": None}
