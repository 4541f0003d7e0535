"""Tests of replays in the plan and status of a pipeline, against a world in memory."""

from __future__ import annotations

import copy
import datetime as dt
import json
from dataclasses import replace
from typing import Any

import pytest

from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_operator.plan.build import build_plan
from tidemill_operator.plan.changes import find_changes
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
        """Store the progress of a replay in the schema."""
        self.world.postgres.schemas[SCHEMA] = replace(self.schema, replays={reader: LiveReplay(**facts)})

    def workloads(self) -> dict[str, Any]:
        return dict(self.world.runtime.running["shop", "orders"])


@pytest.fixture
def pipeline(document: Document, world: MemoryWorld) -> Pipeline:
    """Return a running pipeline with three partitions."""
    return Pipeline(document, world)


def versions(status: Document) -> dict[str, int]:
    return {item["name"]: item["version"] for item in status["aggregations"]}


def test_a_replay_fills_a_version_and_switches_to_it(pipeline: Pipeline) -> None:
    """A processor of the replay fills a second version. Queries switch to it when every partition is handed over."""
    processor = pipeline.workloads()["orders-processor"]
    status = pipeline.ask({"from": "2026-03-01T00:00:00Z", "rate": 500})
    reader = status["replay"]["reader"]
    assert (status["replay"]["versions"], versions(status)) == ({"by_country": 2}, {"by_country": 1})
    assert pipeline.schema.readers == {("by_country", 1): "live", ("by_country", 2): reader}
    workload = pipeline.workloads()["orders-replay"]
    assert (workload.component, workload.replicas) == ("replay", 1)
    environment = {
        name: workload.environment[f"TIDEMILL_{name}"] for name in ("READER", "START_FROM", "RATE", "PIPELINE")
    }
    assert environment == {"READER": reader, "START_FROM": "2026-03-01T00:00:00Z", "RATE": "500", "PIPELINE": "orders"}
    assert pipeline.workloads()["orders-processor"] == processor, "the processor of live traffic is unchanged"

    pipeline.is_at(reader, handed_over=2, processed=70, left=5)
    status = pipeline.reconcile()
    assert {name: status["replay"][name] for name in ("processed", "left", "partitionsHandedOver")} == {
        "processed": 70,
        "left": 5,
        "partitionsHandedOver": 2,
    }
    assert versions(status) == {"by_country": 1}

    pipeline.is_at(reader, handed_over=3, processed=75)
    status = pipeline.reconcile()
    assert (status["replay"], versions(status)) == ({"reader": reader, "phase": "Done"}, {"by_country": 2})
    assert "orders-replay" not in pipeline.workloads()
    assert pipeline.workloads()["orders-processor"].revision != processor.revision
    assert pipeline.schema.readers == {("by_country", 1): "live", ("by_country", 2): "live"}
    assert pipeline.schema.replays[reader].switched
    assert pipeline.schema.generation == 1, "processors of the former generation fill the version too"
    pipeline.world.take_writes()
    assert (pipeline.reconcile(), pipeline.world.take_writes()) == (status, []), "a completed replay is not repeated"


class Killed(BaseException):
    """Raised instead of a call to end the operator."""


def killed_before(pipeline: Pipeline, call: int) -> bool:
    """Run a pass of an operator that dies before its n-th call of the world. Return whether it died."""
    world, left = pipeline.world, [call]
    parts = (world.kafka, world.postgres, world.secrets, world.runtime)

    def called(_: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        for part in parts:
            patch.setattr(part, "_record_call", called)
        try:
            pipeline.reconcile()
        except Killed:
            return True
    return False


def test_a_switch_is_completed_after_the_operator_was_killed(document: Document) -> None:
    """The operator is killed before each of its calls. The next operator reaches the same state."""
    call, killed = 0, True
    while killed:
        pipeline = Pipeline(copy.deepcopy(document), MemoryWorld())
        reader = pipeline.ask({})["replay"]["reader"]
        pipeline.is_at(reader, handed_over=3)
        killed = killed_before(pipeline, call)
        status = pipeline.reconcile()
        assert (status["replay"], versions(status)) == ({"reader": reader, "phase": "Done"}, {"by_country": 2}), call
        assert pipeline.schema.readers == {("by_country", 1): "live", ("by_country", 2): "live"}
        assert set(pipeline.workloads()) == {"orders-processor", "tidemill-ingest", "tidemill-api"}
        assert '"version": 2' in pipeline.workloads()["orders-processor"].configs["orders.json"]
        call += 1
    assert call > 5


def test_a_replay_reports_events_that_the_topic_no_longer_holds(pipeline: Pipeline) -> None:
    """The status reports the events during the replay and after it."""
    reader = pipeline.ask({})["replay"]["reader"]
    losses = (Loss("expired", 0, 0, 3, 40), Loss("topic_recreated", 2, 0, 8, None))
    message = "events that the topic no longer holds are not counted (offsets 0: 3 to 40, 2: 8)"
    pipeline.is_at(reader, handed_over=1, losses=losses)
    assert pipeline.reconcile()["replay"]["missed"] == message
    pipeline.is_at(reader, handed_over=3, losses=losses)
    assert pipeline.reconcile()["replay"] == {"reader": reader, "phase": "Done", "missed": message}


PROCESSES: list[tuple[dict[str, Any], dict[str, Any], int, str]] = [
    ({}, {}, 1, "as many as live processors"),
    ({"processor": {"replicas": 2}}, {}, 2, "as many as live processors"),
    ({"processor": {"replicas": 2}}, {"rate": 100}, 1, "a rate is limited by one process"),
    ({"processor": {"scaling": {"mode": "lag", "minReplicas": 0}}}, {}, 1, "live traffic may be scaled to zero"),
    ({"suspend": True, "processor": {"replicas": 2}}, {}, 0, "the pipeline is suspended"),
]


@pytest.mark.parametrize(("spec", "request_", "replicas", "why"), PROCESSES)
def test_a_replay_has_as_many_processes_as_it_needs(
    pipeline: Pipeline, spec: dict[str, Any], request_: dict[str, Any], replicas: int, why: str
) -> None:
    pipeline.edit(**spec)
    pipeline.ask(request_)
    assert pipeline.workloads()["orders-replay"].replicas == replicas, why


def test_a_replayed_aggregation_can_be_removed(pipeline: Pipeline) -> None:
    reader = pipeline.ask({"aggregations": ["by_country"]})["replay"]["reader"]
    pipeline.is_at(reader, handed_over=3)
    pipeline.reconcile()
    renamed = {**pipeline.document["spec"]["aggregations"][0], "name": "by_land"}
    status = pipeline.edit(aggregations=[renamed])
    assert versions(status) == {"by_land": 1}
    assert "Stalled" not in {item["type"] for item in status["conditions"]}


def test_a_switch_waits_for_an_added_partition(pipeline: Pipeline) -> None:
    """A partition that Kafka got during the replay is not handed over yet."""
    reader = pipeline.ask({})["replay"]["reader"]
    pipeline.edit(source={**pipeline.document["spec"]["source"], "topic": {"partitions": 4}})
    pipeline.is_at(reader, handed_over=3)
    assert versions(pipeline.reconcile()) == {"by_country": 1}


def test_an_edit_restarts_the_replay(pipeline: Pipeline) -> None:
    """Live processors with another spec would continue with other values."""
    first = pipeline.ask({})["replay"]
    second = pipeline.edit(transform={"filter": "amount > 3"})["replay"]
    assert first["reader"] != second["reader"]
    assert (first["versions"], second["versions"]) == ({"by_country": 2}, {"by_country": 3})
    assert set(pipeline.schema.shapes) == {("by_country", 1), ("by_country", 3)}


def test_an_edit_of_the_grouping_restarts_the_replay(pipeline: Pipeline) -> None:
    """The edit begins the next version, and the replay fills the version after it."""
    pipeline.ask({})
    status = pipeline.edit(aggregations=[{**pipeline.document["spec"]["aggregations"][0], "groupBy": []}])
    assert (versions(status), status["replay"]["versions"]) == ({"by_country": 3}, {"by_country": 4})
    assert set(pipeline.schema.shapes) == {("by_country", version) for version in (1, 3, 4)}


def test_an_edit_and_a_request_in_one_pass_make_two_versions(pipeline: Pipeline) -> None:
    pipeline.document["metadata"]["annotations"] = {REPLAY: "{}"}
    status = pipeline.edit(aggregations=[{**pipeline.document["spec"]["aggregations"][0], "groupBy": []}])
    assert (versions(status), status["replay"]["versions"]) == ({"by_country": 2}, {"by_country": 3})


def test_an_edit_that_processors_do_not_read_keeps_the_replay(pipeline: Pipeline) -> None:
    first = pipeline.ask({})
    assert pipeline.edit(api={"cacheTtl": "1s"})["replay"] == first["replay"]


def test_a_replay_continues_while_an_edit_is_refused(pipeline: Pipeline) -> None:
    first = pipeline.ask({})
    status = pipeline.edit(source={**pipeline.document["spec"]["source"], "key": "amount"})
    assert "Stalled" in {item["type"] for item in status["conditions"]}
    assert status["replay"] == first["replay"]


def test_a_withdrawn_replay_leaves_nothing_behind(pipeline: Pipeline) -> None:
    before = pipeline.schema
    pipeline.ask({})
    status = pipeline.ask(None)
    assert "replay" not in status
    assert set(pipeline.workloads()) == {"orders-processor", "tidemill-ingest", "tidemill-api"}
    assert (pipeline.schema.shapes, pipeline.schema.replays) == (before.shapes, {})


def test_a_replay_after_an_edit_of_the_grouping_fills_the_version_after_it(pipeline: Pipeline) -> None:
    """The edit begins version 2, which counts live events. The replay fills version 3."""
    edited = {**pipeline.document["spec"]["aggregations"][0], "groupBy": []}
    assert versions(pipeline.edit(aggregations=[edited])) == {"by_country": 2}
    assert pipeline.ask({})["replay"]["versions"] == {"by_country": 3}


def test_the_replay_of_a_suspended_pipeline_has_no_processes(pipeline: Pipeline) -> None:
    pipeline.ask({})
    pipeline.edit(suspend=True)
    assert pipeline.workloads()["orders-replay"].replicas == 0


FILL = "`tidemill replay orders --aggregation by_country`"
KEPT = "of version 1: kept until their retention ends, but no longer filled or queried"
AGGREGATION_CHANGES: list[tuple[dict[str, Any], list[tuple[str, Any, Any]]]] = [
    (
        {"aggregations": [{"window": {"type": "tumbling", "size": "2h"}}]},
        [
            ("version", 1, 2),
            ("window", "type tumbling size 1h", "type tumbling size 2h"),
            ("windows", KEPT, f"of version 2: counted from now on; {FILL} fills it"),
        ],
    ),
    (
        {"aggregations": [{"groupBy": []}]},
        [
            ("version", 1, 2),
            ("groupBy", "[country (string)]", "[]"),
            ("windows", KEPT, f"of version 2: counted from now on; {FILL} fills it"),
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


@pytest.mark.parametrize(("edit", "expected"), AGGREGATION_CHANGES)
def test_a_plan_shows_the_changes_of_an_aggregation(
    pipeline: Pipeline, edit: dict[str, Any], expected: list[tuple[str, Any, Any]]
) -> None:
    """The changes are those that `tidemill plan` shows before anything is written."""
    document = copy.deepcopy(pipeline.document)
    live = LiveFacts(dict(pipeline.world.kafka.topics), 1, pipeline.schema)
    before = build_plan(AnalyticsPipeline.model_validate(document), Platform(), 1, live)
    for aggregation, changed in zip(document["spec"]["aggregations"], edit.pop("aggregations", ()), strict=False):
        aggregation.update(changed)
    document["spec"] |= edit
    plan = build_plan(AnalyticsPipeline.model_validate(document), Platform(), 2, live)
    changed_aggregations = [c for c in find_changes(plan, live, before=before, configs={}) if c.kind == "aggregation"]
    assert [(d.member, d.before, d.after) for change in changed_aggregations for d in change.differences] == expected
