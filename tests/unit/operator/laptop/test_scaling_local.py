"""Tests of scaling under `up`: polls, decisions that a restart keeps, and `tidemill explain`. Figures are in memory."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tidemill_contract.resource.documents import load_documents
from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_operator.cli import explain
from tidemill_operator.cli.main import CommandError
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.laptop.scaling import LocalScaling
from tidemill_operator.observer.scaling_figures import MeasuredPipeline, MeasuredStage
from tidemill_operator.plan.build import build_plan
from tidemill_operator.plan.live import LiveFacts
from tidemill_operator.processes.child import start_time
from tidemill_operator.processes.supervisor import ReplicaState
from tidemill_operator.scaling import PartitionFigures, ScalingFigures
from tidemill_operator.settings import Platform
from waiting import eventually

EXAMPLE = Path(__file__).parents[4] / "crds" / "examples" / "flights.yaml"
KEY = ("analytics", "flights")
STAGE = {"configMap": "enrich", "file": "enrich.py", "function": "enrich"}


def pipeline(scaling: dict[str, Any] | None, **spec: Any) -> AnalyticsPipeline:
    document = load_documents(EXAMPLE.read_text())[0]
    document["spec"]["processor"] = {"scaling": scaling} if scaling is not None else {"replicas": 2}
    document["spec"] |= spec
    return AnalyticsPipeline.model_validate(document)


def staged(scaling: dict[str, Any]) -> AnalyticsPipeline:
    """Return the pipeline with a Python stage."""
    transform = load_documents(EXAMPLE.read_text())[0]["spec"]["transform"]
    return pipeline(scaling, transform={**transform, "python": STAGE})


@dataclass
class Runtime:
    """A runtime whose decided processes are ready at once."""

    config_root: Path
    decided: Callable[[], int] = lambda: 1
    staged: Callable[[], int] = lambda: 1

    def write(self, spec: AnalyticsPipeline) -> None:
        refs = tuple(AggregationRef(name=a.name) for a in spec.spec.aggregations)
        config = PipelineConfig(namespace=KEY[0], name=KEY[1], generation=1, spec=spec.spec, aggregations=refs)
        path = self.config_root / KEY[0] / f"{KEY[1]}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(config.to_json())

    def replicas(self, namespace: str, workload: str) -> list[ReplicaState]:
        assert namespace == KEY[0]
        count = {f"{KEY[1]}-processor": self.decided, f"{KEY[1]}-stage": self.staged}[workload]()
        return [
            ReplicaState(name=str(n), pid=1, port=1, ready=True, current=True, restarts=0, last_exit=None, log="")
            for n in range(count)
        ]


@dataclass
class Reader:
    """A reader of figures with a lag that the test sets."""

    lag: int = 0
    broken: bool = False
    polls: int = 0
    watched: MeasuredPipeline | None = None
    stage: MeasuredStage | None = None
    rollouts: list[bool] = field(default_factory=list)

    def read(self, measured: MeasuredPipeline | MeasuredStage, *, ready: int, rolling_out: bool) -> ScalingFigures:
        if isinstance(measured, MeasuredStage):
            self.stage = measured
            return ScalingFigures(
                {p: PartitionFigures(0, 300_000, 0, 0) for p in range(4)}, ready, rolling_out=rolling_out
            )
        self.polls += 1
        self.watched = measured
        self.rollouts.append(rolling_out)
        if self.broken:
            raise TidemillError(Reason.UNREACHABLE, "Kafka does not answer")
        parts = {p: PartitionFigures(0, self.lag, 0, 0) for p in range(4)}
        return ScalingFigures(parts, ready, rolling_out=rolling_out)


@dataclass
class ScaledPipeline:
    scaling: LocalScaling
    reader: Reader
    runtime: Runtime
    printed: list[str]
    folder: Path

    def again(self) -> LocalScaling:
        """Return the scaling of a later run on the same folder."""
        return LocalScaling(self.folder, reader=self.reader, runtime=self.runtime, say=self.printed.append)


def processors(scaling: LocalScaling) -> int | None:
    """Return the decided number of processors."""
    return scaling.replicas(*KEY).get("processor")


def decision_status(scaling: LocalScaling) -> Mapping[str, Any]:
    """Return the status of the last decision about processors."""
    return scaling.status(*KEY).get("scaling", {})


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[ScaledPipeline]:
    reader, runtime, printed = Reader(), Runtime(tmp_path / "pipelines"), []  # type: ignore[var-annotated]
    scaling = LocalScaling(tmp_path / "scaling", reader=reader, runtime=runtime, say=printed.append)
    runtime.decided = lambda: processors(scaling) or 1
    scaling.start()
    yield ScaledPipeline(scaling, reader, runtime, printed, tmp_path / "scaling")
    scaling.close()


def test_lag_adds_processors_and_a_restart_keeps_their_number(bench: ScaledPipeline) -> None:
    """The decision is printed, is in the status, and is stored."""
    bench.reader.lag = 100_000
    bench.runtime.write(pipeline({"pollInterval": "1s", "lookback": "2s"}))
    bench.scaling.watch([KEY])
    eventually(lambda: bench.printed, what="a decision is printed")
    assert bench.printed == ["analytics/flights: 1 → 4 processors (ScaledUp)"]
    assert processors(bench.scaling) == 4
    assert decision_status(bench.scaling)["reason"] == "ScaledUp"
    assert bench.scaling.history(*KEY)[-1]["desired"] == 4
    assert bench.reader.watched == MeasuredPipeline(
        "analytics__flights",
        "analytics.flights.events",
        "tidemill.analytics.flights",
        "analytics__flights_writer",
        "analytics",
    )
    later = bench.again()
    later.watch([KEY])
    assert processors(later) == 4
    assert later.history(*KEY) == bench.scaling.history(*KEY)
    later.forget(*KEY)
    assert processors(bench.again()) is None


def test_a_python_stage_is_scaled_by_its_lag(bench: ScaledPipeline) -> None:
    """The settings are those of processors. The decisions are separate, and a restart keeps them."""
    followed = {"pollInterval": "1s", "lookback": "2s", "maxReplicas": 3}
    bench.runtime.staged = lambda: bench.scaling.replicas(*KEY).get("stage") or 1
    bench.runtime.write(staged(followed))
    bench.scaling.watch([KEY])
    eventually(lambda: bench.printed, what="a decision is printed")
    assert bench.printed == [
        "analytics/flights: 1 → 3 processes of the Python stage (ScaledUp, limited by maxReplicas)"
    ]
    stage = MeasuredStage(Key(*KEY, ""), "analytics.flights.events", 6, "tidemill.analytics.flights.stage")
    assert bench.reader.stage == stage
    eventually(lambda: len(bench.scaling.status(*KEY)) == 2, what="decisions about processors and stage")
    status = bench.scaling.status(*KEY)
    assert (status["scaling"]["desired"], status["stageScaling"]["desired"]) == (1, 3)
    assert bench.scaling.describe(*KEY)["stageDecisions"][0]["desired"] == 3
    # A decision appears in the status before it is stored.
    stored = {"processor": 1, "stage": 3}
    eventually(lambda: bench.again().replicas(*KEY) == stored, what="both decisions are stored")
    later = bench.again()
    later.forget(*KEY)
    assert bench.again().replicas(*KEY) == {}
    plan = build_plan(staged(followed), Platform(), 1, LiveFacts(replicas={"stage": 3}))
    assert {workload.component: workload.replicas for workload in plan.workloads if workload.scaled} == {
        "processor": 1,
        "stage": 3,
    }


def test_starting_processes_count_as_a_rollout(bench: ScaledPipeline) -> None:
    """No decision is made during a rollout."""
    bench.reader.lag = 100_000
    bench.runtime.decided = lambda: 0
    bench.runtime.write(pipeline({"pollInterval": "1s", "lookback": "2s"}))
    bench.scaling.watch([KEY])
    eventually(
        lambda: decision_status(bench.scaling).get("reason") == "RolloutInProgress", what="the rollout is reported"
    )
    assert processors(bench.scaling) == 1
    assert set(bench.reader.rollouts) == {True}


def test_an_unreachable_server_changes_no_replicas(bench: ScaledPipeline) -> None:
    """The status says that figures are missing, and the next poll follows."""
    bench.reader.broken = True
    bench.runtime.write(pipeline({"pollInterval": "1s", "lookback": "2s"}))
    bench.scaling.watch([KEY])
    eventually(lambda: bench.reader.polls >= 2, what="two polls")
    assert decision_status(bench.scaling)["reason"] == "FiguresMissing"
    assert processors(bench.scaling) == 1


@pytest.mark.parametrize(
    "spec",
    [pipeline(None), pipeline({"pollInterval": "1s"}, suspend=True)],
    ids=["without scaling", "suspended"],
)
def test_a_pipeline_that_is_not_scaled_is_not_polled(bench: ScaledPipeline, spec: AnalyticsPipeline) -> None:
    bench.runtime.write(spec)
    bench.scaling.watch([KEY])
    eventually(lambda: set(bench.scaling.decisions().values()) == {None}, what="no decision remains")
    bench.runtime.write(pipeline({"pollInterval": "1s", "lookback": "2s"}))
    eventually(lambda: bench.reader.polls == 1, what="one poll")
    bench.scaling.watch([])
    assert bench.scaling.decisions() == {}


def test_mode_external_decides_nothing(bench: ScaledPipeline) -> None:
    """The status names the mode."""
    bench.runtime.write(pipeline({"mode": "external", "pollInterval": "1s", "lookback": "2s"}))
    bench.scaling.watch([KEY])
    eventually(lambda: decision_status(bench.scaling).get("reason") == "External", what="the mode is reported")
    assert processors(bench.scaling) is None


@pytest.mark.parametrize(
    ("scaling", "suspend", "scaled", "expected", "reason"),
    [
        (None, False, 5, 2, "spec.processor.replicas"),
        ({"minReplicas": 2}, False, None, 2, "before the first decision, the minimum applies"),
        ({}, False, 3, 3, "the decision applies"),
        ({"scaleToZeroAfter": "1h"}, False, 0, 0, "the decision may be zero"),
        ({"mode": "external"}, False, 3, 1, "an external autoscaler decides"),
        ({}, True, 3, 0, "a suspended pipeline has no processors"),
    ],
)
def test_the_plan_follows_the_decision(
    scaling: dict[str, Any] | None, suspend: bool, scaled: int | None, expected: int, reason: str
) -> None:
    plan = build_plan(
        pipeline(scaling, suspend=suspend),
        Platform(),
        1,
        LiveFacts(replicas={} if scaled is None else {"processor": scaled}),
    )
    (processor,) = [workload for workload in plan.workloads if workload.component == "processor"]
    assert processor.replicas == expected, reason


def explained(folder: Path, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    explain.add_parser(parser.add_subparsers())
    return explain.run(parser.parse_args(["explain", "--data-dir", str(folder), *arguments]))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Write the report of a running `up`, and return its folder."""
    record = {"at": 0.0, "current": 1, "desired": 4, "reason": "ScaledUp", "need": 5, "limitedBy": "partitions"}
    unchanged = {"at": 60.0, "current": 4, "desired": 4, "reason": "Stabilizing", "need": None, "limitedBy": ""}
    pipelines = {
        "a/flights": {"scaling": {"message": "4 replicas: Stabilizing\nwhy"}, "decisions": [record, unchanged]},
        "a/staged": {"scaling": {}, "stageScaling": {"message": "2 replicas: ScaledUp"}, "stageDecisions": [record]},
        "a/calm": {"scaling": {}, "decisions": []},
        "a/twice": {},
        "b/twice": {},
    }
    report = {"pid": os.getpid(), "started": start_time(os.getpid()), "pipelines": pipelines}
    (tmp_path / "status.json").write_text(json.dumps(report))
    return tmp_path


def test_explain_prints_the_decision_and_earlier_ones(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explained(state, "flights") == 0
    assert capsys.readouterr().out.splitlines() == [
        "a/flights: 4 replicas: Stabilizing",
        "why",
        "",
        "decisions, latest first:",
        "  1970-01-01 00:01:00Z  stays at 4  Stabilizing",
        "  1970-01-01 00:00:00Z  1 → 4  ScaledUp, limited by partitions, needed 5",
    ]
    assert explained(state, "a/flights", "--output", "json") == 0
    assert [d["desired"] for d in json.loads(capsys.readouterr().out)["decisions"]] == [4, 4]
    assert explained(state, "staged") == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["a/staged, Python stage: 2 replicas: ScaledUp", ""]
    assert explained(state, "calm") == 0
    assert "spec.processor.scaling is not set" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("twice", "write one of a/twice, b/twice"),
        ("nobody", "running pipelines: a/calm, a/flights, a/staged, a/twice, b/twice"),
    ],
)
def test_explain_of_an_ambiguous_or_unknown_name_lists_pipelines(state: Path, name: str, expected: str) -> None:
    with pytest.raises(CommandError, match=expected):
        explained(state, name)


def test_explain_without_a_running_up_names_the_command_that_starts_it(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="tidemill up -f FILE"):
        explained(tmp_path, "flights")
