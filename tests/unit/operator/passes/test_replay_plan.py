"""What a replay that is asked for makes of a pipeline's plan, pass by pass."""

from __future__ import annotations

import copy
import datetime as dt
import json
from dataclasses import replace
from typing import Any

import pytest

from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_operator.plan.build import build_plan
from tidemill_operator.plan.changes import changes
from tidemill_operator.plan.live import LiveFacts, LiveReplay, LiveSchema, Loss
from tidemill_operator.plan.replay import REPLAY
from tidemill_operator.reconcile import reconcile
from tidemill_operator.settings import Platform
from tidemill_operator.testing import MemoryWorld

Document = dict[str, Any]
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
SCHEMA = "shop__orders"


class Pipeline:
    """A resource that is reconciled, edited, and asked for replays."""

    def __init__(self, document: Document, world: MemoryWorld) -> None:
        self.document, self.world = document, world
        self.status: Document | None = None
        self.reconcile()

    def reconcile(self) -> Document:
        status = reconcile(
            self.document,
            platform=Platform(),
            actuators=self.world.actuators,
            previous=self.status,
            now=NOON,
        )
        self.status = status
        return status

    def ask(self, request: dict[str, Any] | None) -> Document:
        self.document = copy.deepcopy(self.document)
        annotations = {} if request is None else {REPLAY: json.dumps(request)}
        self.document["metadata"]["annotations"] = annotations
        return self.reconcile()

    def edit(self, **members: Any) -> Document:
        self.document = copy.deepcopy(self.document)
        self.document["spec"] |= members
        self.document["metadata"]["generation"] += 1
        return self.reconcile()

    @property
    def schema(self) -> LiveSchema:
        return self.world.postgres.schemas[SCHEMA]  # type: ignore[no-any-return]

    def is_at(self, reader: str, **facts: Any) -> None:
        """As Postgres tells it."""
        self.world.postgres.schemas[SCHEMA] = replace(self.schema, replays={reader: LiveReplay(**facts)})

    def workloads(self) -> dict[str, Any]:
        return dict(self.world.runtime.running["shop", "orders"])


@pytest.fixture
def pipeline(document: Document, world: MemoryWorld) -> Pipeline:
    """One that runs, of three partitions."""
    return Pipeline(document, world)


def versions(status: Document) -> dict[str, int]:
    return {item["name"]: item["version"] for item in status["aggregations"]}


def test_from_the_request_to_the_switch(pipeline: Pipeline) -> None:
    """A version beside the present one, a processor of its own; switched once every partition is handed over."""
    processor = pipeline.workloads()["orders-processor"]
    status = pipeline.ask({"from": "2026-03-01T00:00:00Z", "rate": 500})
    reader = status["replay"]["reader"]
    assert (status["replay"]["versions"], versions(status)) == ({"by_country": 2}, {"by_country": 1})
    assert pipeline.schema.readers == {("by_country", 1): "live", ("by_country", 2): reader}
    workload = pipeline.workloads()["orders-replay"]
    assert (workload.component, workload.replicas) == ("replay", 1)
    told = {name: workload.environment[f"TIDEMILL_{name}"] for name in ("READER", "START_FROM", "RATE", "PIPELINE")}
    assert told == {"READER": reader, "START_FROM": "2026-03-01T00:00:00Z", "RATE": "500", "PIPELINE": "orders"}
    assert pipeline.workloads()["orders-processor"] == processor, "live traffic goes on"

    pipeline.is_at(reader, handed=2, processed=70, left=5)
    status = pipeline.reconcile()
    assert {name: status["replay"][name] for name in ("processed", "left", "partitionsHandedOver")} == {
        "processed": 70,
        "left": 5,
        "partitionsHandedOver": 2,
    }
    assert versions(status) == {"by_country": 1}

    pipeline.is_at(reader, handed=3, processed=75)
    status = pipeline.reconcile()
    assert (status["replay"], versions(status)) == ({"reader": reader, "phase": "Done"}, {"by_country": 2})
    assert "orders-replay" not in pipeline.workloads()
    assert pipeline.workloads()["orders-processor"].revision != processor.revision
    assert pipeline.schema.readers == {("by_country", 1): "live", ("by_country", 2): "live"}
    assert pipeline.schema.replays[reader].switched
    assert pipeline.schema.generation == 1, "processors of before count for it too, so none has to stop at once"
    pipeline.world.take_writes()
    assert (pipeline.reconcile(), pipeline.world.take_writes()) == (status, []), "asked once, done once"


class Killed(BaseException):
    """The operator is no more."""


def killed_before(pipeline: Pipeline, call: int) -> bool:
    """A pass of an operator that dies before its n-th call of the world; whether it came so far."""
    world, left = pipeline.world, [call]
    parts = (world.kafka, world.postgres, world.secrets, world.runtime)

    def called(_: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        for part in parts:
            patch.setattr(part, "_called", called)
        try:
            pipeline.reconcile()
        except Killed:
            return True
    return False


def test_an_operator_killed_at_the_switch(document: Document) -> None:
    """Wherever it dies, the next one comes to the same end."""
    call, killed = 0, True
    while killed:
        pipeline = Pipeline(copy.deepcopy(document), MemoryWorld())
        reader = pipeline.ask({})["replay"]["reader"]
        pipeline.is_at(reader, handed=3)
        killed = killed_before(pipeline, call)
        status = pipeline.reconcile()
        assert (status["replay"], versions(status)) == ({"reader": reader, "phase": "Done"}, {"by_country": 2}), call
        assert pipeline.schema.readers == {("by_country", 1): "live", ("by_country", 2): "live"}
        assert set(pipeline.workloads()) == {"orders-processor", "tidemill-ingest", "tidemill-api"}
        assert '"version": 2' in pipeline.workloads()["orders-processor"].configs["orders.json"]
        call += 1
    assert call > 5


def test_what_the_topic_held_no_longer(pipeline: Pipeline) -> None:
    """It is told while the replay runs and when it is done."""
    reader = pipeline.ask({})["replay"]["reader"]
    losses = (Loss("expired", 0, 0, 3, 40), Loss("topic_recreated", 2, 0, 8, None))
    told = "events that the topic no longer holds are not counted (offsets 0: 3 to 40, 2: 8)"
    pipeline.is_at(reader, handed=1, losses=losses)
    assert pipeline.reconcile()["replay"]["missed"] == told
    pipeline.is_at(reader, handed=3, losses=losses)
    assert pipeline.reconcile()["replay"] == {"reader": reader, "phase": "Done", "missed": told}


PROCESSES: list[tuple[dict[str, Any], dict[str, Any], int, str]] = [
    ({}, {}, 1, "as live traffic has"),
    ({"processor": {"replicas": 2}}, {}, 2, "as live traffic has"),
    ({"processor": {"replicas": 2}}, {"rate": 100}, 1, "a rate is one process's"),
    ({"processor": {"scaling": {"mode": "lag", "minReplicas": 0}}}, {}, 1, "live traffic may rest"),
    ({"suspend": True, "processor": {"replicas": 2}}, {}, 0, "all stands still"),
]


@pytest.mark.parametrize(("spec", "request_", "replicas", "why"), PROCESSES)
def test_a_replay_has_as_many_processes_as_it_needs(
    pipeline: Pipeline, spec: dict[str, Any], request_: dict[str, Any], replicas: int, why: str
) -> None:
    pipeline.edit(**spec)
    pipeline.ask(request_)
    assert pipeline.workloads()["orders-replay"].replicas == replicas, why


def test_what_was_replayed_may_go(pipeline: Pipeline) -> None:
    """A request that is done stands in nobody's way."""
    reader = pipeline.ask({"aggregations": ["by_country"]})["replay"]["reader"]
    pipeline.is_at(reader, handed=3)
    pipeline.reconcile()
    renamed = {**pipeline.document["spec"]["aggregations"][0], "name": "by_land"}
    status = pipeline.edit(aggregations=[renamed])
    assert versions(status) == {"by_land": 1}
    assert "Stalled" not in {item["type"] for item in status["conditions"]}


def test_another_partition_is_waited_for(pipeline: Pipeline) -> None:
    """One that Kafka has got meanwhile is not handed over yet."""
    reader = pipeline.ask({})["replay"]["reader"]
    pipeline.edit(source={**pipeline.document["spec"]["source"], "topic": {"partitions": 4}})
    pipeline.is_at(reader, handed=3)
    assert versions(pipeline.reconcile()) == {"by_country": 1}


def test_an_edit_begins_it_anew(pipeline: Pipeline) -> None:
    """Live processors of another spec would count otherwise from where they take over."""
    first = pipeline.ask({})["replay"]
    second = pipeline.edit(transform={"filter": "amount > 3"})["replay"]
    assert first["reader"] != second["reader"]
    assert (first["versions"], second["versions"]) == ({"by_country": 2}, {"by_country": 3})
    assert set(pipeline.schema.shapes) == {("by_country", 1), ("by_country", 3)}


def test_an_edit_of_the_shape_begins_it_anew(pipeline: Pipeline) -> None:
    """The edit makes the next version, and the replay the one after it."""
    pipeline.ask({})
    status = pipeline.edit(aggregations=[{**pipeline.document["spec"]["aggregations"][0], "groupBy": []}])
    assert (versions(status), status["replay"]["versions"]) == ({"by_country": 3}, {"by_country": 4})
    assert set(pipeline.schema.shapes) == {("by_country", version) for version in (1, 3, 4)}


def test_an_edit_and_a_request_at_once(pipeline: Pipeline) -> None:
    pipeline.document["metadata"]["annotations"] = {REPLAY: "{}"}
    status = pipeline.edit(aggregations=[{**pipeline.document["spec"]["aggregations"][0], "groupBy": []}])
    assert (versions(status), status["replay"]["versions"]) == ({"by_country": 2}, {"by_country": 3})


def test_what_processors_do_not_read_leaves_it_alone(pipeline: Pipeline) -> None:
    first = pipeline.ask({})
    assert pipeline.edit(api={"cacheTtl": "1s"})["replay"] == first["replay"]


def test_it_goes_on_while_an_edit_is_refused(pipeline: Pipeline) -> None:
    first = pipeline.ask({})
    status = pipeline.edit(source={**pipeline.document["spec"]["source"], "key": "amount"})
    assert "Stalled" in {item["type"] for item in status["conditions"]}
    assert status["replay"] == first["replay"]


def test_a_replay_that_is_taken_back_leaves_nothing_behind(pipeline: Pipeline) -> None:
    before = pipeline.schema
    pipeline.ask({})
    status = pipeline.ask(None)
    assert "replay" not in status
    assert set(pipeline.workloads()) == {"orders-processor", "tidemill-ingest", "tidemill-api"}
    assert (pipeline.schema.shapes, pipeline.schema.replays) == (before.shapes, {})


def test_of_another_shape(pipeline: Pipeline) -> None:
    """The edit makes version 2, which counts from then on; the replay fills version 3."""
    edited = {**pipeline.document["spec"]["aggregations"][0], "groupBy": []}
    assert versions(pipeline.edit(aggregations=[edited])) == {"by_country": 2}
    assert pipeline.ask({})["replay"]["versions"] == {"by_country": 3}


def test_nothing_to_replay(pipeline: Pipeline) -> None:
    """A suspended pipeline's replay stands still as well."""
    pipeline.ask({})
    pipeline.edit(suspend=True)
    assert pipeline.workloads()["orders-replay"].replicas == 0


FILL = "`tidemill replay orders --aggregation by_country`"
STAYS = "of version 1: kept until their retention ends, but no longer filled or queried"
TOLD: list[tuple[dict[str, Any], list[tuple[str, Any, Any]]]] = [
    (
        {"aggregations": [{"window": {"type": "tumbling", "size": "2h"}}]},
        [
            ("version", 1, 2),
            ("window", "type tumbling size 1h", "type tumbling size 2h"),
            ("windows", STAYS, f"of version 2: counted from now on; {FILL} fills it"),
        ],
    ),
    (
        {"aggregations": [{"groupBy": []}]},
        [
            ("version", 1, 2),
            ("groupBy", "[country (string)]", "[]"),
            ("windows", STAYS, f"of version 2: counted from now on; {FILL} fills it"),
        ],
    ),
    (
        {"transform": {"filter": "amount > 3"}},
        [
            (
                "events",
                "counted under the former spec",
                f"counted under the new spec from now on; {FILL} counts earlier events again",
            )
        ],
    ),
    ({"api": {"cacheTtl": "1s"}}, []),
]


@pytest.mark.parametrize(("edit", "told"), TOLD)
def test_what_a_plan_tells_of_an_aggregation(
    pipeline: Pipeline, edit: dict[str, Any], told: list[tuple[str, Any, Any]]
) -> None:
    """Before anything is done."""
    document = copy.deepcopy(pipeline.document)
    live = LiveFacts(dict(pipeline.world.kafka.topics), 1, pipeline.schema)
    before = build_plan(AnalyticsPipeline.model_validate(document), Platform(), 1, live)
    for aggregation, changed in zip(document["spec"]["aggregations"], edit.pop("aggregations", ()), strict=False):
        aggregation.update(changed)
    document["spec"] |= edit
    plan = build_plan(AnalyticsPipeline.model_validate(document), Platform(), 2, live)
    found = [c for c in changes(plan, live, before=before, configs={}) if c.kind == "aggregation"]
    assert [(d.member, d.before, d.after) for change in found for d in change.differences] == told
