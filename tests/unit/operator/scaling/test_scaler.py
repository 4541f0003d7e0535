"""Tests of scaling as both runtimes do it, with a backend in memory. A cluster's stored state is tested too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tidemill_contract.resource.documents import load_documents
from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_operator.actuators.kubernetes.rollout import is_rolled_out
from tidemill_operator.cluster.scaling import is_write_due, manifest, without_samples
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.observer.scaling_figures import MeasuredPipeline
from tidemill_operator.scaler import RunningComponent, SavedScaling, Scalable, Scaler
from tidemill_operator.scaling import Decision, PartitionFigures, ScalingFigures, State

EXAMPLE = Path(__file__).parents[4] / "crds" / "examples" / "flights.yaml"
LAG = {"scaleUpCooldown": "1s", "lagThreshold": 100}


def config(scaling: Mapping[str, Any] | None, **spec: Any) -> PipelineConfig:
    document = load_documents(EXAMPLE.read_text())[0]
    document["spec"] |= {"processor": {"scaling": scaling} if scaling is not None else {}, **spec}
    validated = AnalyticsPipeline.model_validate(document).spec
    refs = tuple(AggregationRef(name=a.name) for a in validated.aggregations)
    return PipelineConfig(namespace="n", name="flights", generation=1, spec=validated, aggregations=refs)


@dataclass
class MemoryBackend:
    """A pipeline in memory that runs the decided number of processors at once."""

    config: PipelineConfig
    running: int = 1
    shows_running: bool = True
    stored: SavedScaling = field(default_factory=SavedScaling)
    decided: list[tuple[int, int]] = field(default_factory=list)
    lag: int | None = 0

    def find_running(self, key: str) -> RunningComponent | None:
        return RunningComponent(self.config, self.running, self.running)

    def load(self, key: str) -> SavedScaling:
        if self.stored.replicas is None and self.shows_running:
            return replace(self.stored, replicas=self.running)
        return self.stored

    def save(self, key: str, memory: SavedScaling, *, changed: bool) -> None:
        self.stored = memory

    def report(self, key: str, decision: Decision) -> None:
        self.decided.append((decision.current, decision.replicas))
        self.running = decision.replicas

    def read(self, measured: MeasuredPipeline, *, ready: int, rolling_out: bool) -> ScalingFigures:
        if self.lag is None:
            raise TidemillError(Reason.UNREACHABLE, "Kafka does not answer")
        parts = {p: PartitionFigures(0, self.lag, 0, 0) for p in range(4)}
        return ScalingFigures(parts, ready, rolling_out=rolling_out)


def make_scaler(backend: MemoryBackend) -> Scaler[str]:
    return Scaler(backend, backend)


def test_another_scaler_continues_from_the_stored_state() -> None:
    backend = MemoryBackend(config(LAG), lag=100)
    first = make_scaler(backend)
    assert first.poll("p") == 15.0
    assert backend.decided == [(1, 4)]
    second = make_scaler(backend)
    assert second.replicas("p") == 4
    second.poll("p")
    assert second.history("p")[0]["reason"] == "ScaledUp"


def test_missing_figures_keep_the_running_number() -> None:
    """The same holds before the first decision."""
    backend = MemoryBackend(config(LAG), running=3, lag=None)
    scaler = make_scaler(backend)
    scaler.poll("p")
    assert scaler.replicas("p") == 3
    assert scaler.status("p")["reason"] == "FiguresMissing"
    assert backend.decided == []


def test_the_number_is_kept_while_not_all_processors_work() -> None:
    backend = MemoryBackend(config(LAG), lag=100, running=2, stored=SavedScaling(replicas=1))
    scaler = make_scaler(backend)
    scaler.poll("p")
    assert (scaler.replicas("p"), scaler.status("p")["reason"]) == (1, "RolloutInProgress")


def test_a_pipeline_without_scaling_forgets_the_decided_number() -> None:
    backend = MemoryBackend(config(LAG), lag=100)
    scaler = make_scaler(backend)
    scaler.poll("p")
    backend.config, backend.running, backend.lag = config(None), 2, 0
    assert scaler.poll("p") is None
    assert scaler.status("p") == {}
    assert backend.stored == SavedScaling()
    assert scaler.replicas("p") == 2


def test_a_suspended_pipeline_keeps_the_decided_number() -> None:
    backend = MemoryBackend(config(LAG), lag=100)
    scaler = make_scaler(backend)
    scaler.poll("p")
    backend.config, backend.running = config(LAG, suspend=True), 0
    assert scaler.poll("p") is None
    assert (scaler.replicas("p"), scaler.status("p")) == (4, {})


def test_mode_external_reports_the_running_number_and_decides_nothing() -> None:
    backend = MemoryBackend(config({"mode": "external"}), running=3, lag=100)
    scaler = make_scaler(backend)
    scaler.poll("p")
    status = scaler.status("p")
    assert (status["current"], status["desired"], status["reason"]) == (3, 3, "External")
    assert (backend.decided, backend.stored.replicas) == ([], None)
    backend.config, backend.running, backend.lag = config(LAG), 4, 0
    assert scaler.replicas("p") == 4, "scaling starts from the number that others set"


def test_a_dry_run_reports_the_decision_and_changes_no_replicas() -> None:
    backend = MemoryBackend(config({**LAG, "dryRun": True}), lag=100)
    scaler = make_scaler(backend)
    scaler.poll("p")
    status = scaler.status("p")
    assert (status["current"], status["desired"], status["reason"]) == (1, 4, "DryRun")
    assert (backend.decided, scaler.replicas("p")) == ([], 1)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"replicas": "x", "state": {}}'])
def test_a_broken_memory_is_read_as_an_empty_one(text: str) -> None:
    assert SavedScaling.from_json(text) == SavedScaling()


def test_a_memory_is_read_as_it_was_written() -> None:
    memory = SavedScaling(State(wanted=((1.0, 2),), patience=2), 3)
    assert SavedScaling.from_json(memory.to_json()) == memory


def test_the_largest_memory_fits_in_a_config_map() -> None:
    """1,024 is the largest number of partitions of a topic."""
    ends = {p: (10**15, 10**15, 10**12) for p in range(1024)}
    state = State(seen=ends, standing=dict.fromkeys(ends, 1e9 / 3), wanted=tuple((1e9 / 3, n) for n in range(1024)))
    text = manifest(Scalable(Key("n", "p", "u"), "processor"), SavedScaling(state, 3))["data"]["memory.json"]
    assert len(text) < 256 * 1024


@pytest.mark.parametrize(
    ("later", "differs", "reason"),
    [
        (SavedScaling(State(polled_at=2.0, wanted=((2.0, 1),)), 1), False, "only time has passed"),
        (SavedScaling(State(polled_at=2.0, wanted=((2.0, 2),)), 1), True, "more replicas are needed"),
        (SavedScaling(State(polled_at=2.0, wanted=((2.0, 1),), seen={0: (1, 0, 1)}), 1), True, "events have arrived"),
        (SavedScaling(State(polled_at=2.0, wanted=((2.0, 1),)), 2), True, "the number of replicas changed"),
    ],
)
def test_a_memory_is_written_only_if_more_than_time_has_changed(
    later: SavedScaling, differs: bool, reason: str
) -> None:
    before = SavedScaling(State(polled_at=1.0, wanted=((1.0, 1),)), 1)
    assert (without_samples(later) != without_samples(before)) is differs, reason


STATUS = {"mode": "lag", "desired": 1, "reason": "WithinTarget", "lag": 5}


@pytest.mark.parametrize(
    ("status", "latest", "seconds", "expected", "reason"),
    [
        (None, STATUS, 0.0, True, "there is no status yet"),
        (STATUS, STATUS, 3600.0, False, "the status is the same"),
        (STATUS, {**STATUS, "lag": 6}, 59.0, False, "other figures are written after a minute"),
        (STATUS, {**STATUS, "lag": 6}, 60.0, True, "a minute has passed"),
        (STATUS, {**STATUS, "desired": 2}, 0.0, True, "another number of replicas"),
        (STATUS, {**STATUS, "reason": "Stabilizing"}, 0.0, True, "another reason"),
    ],
)
def test_a_status_is_written_for_decisions_at_once_and_for_figures_once_a_minute(
    status: dict[str, Any] | None, latest: dict[str, Any], seconds: float, expected: bool, reason: str
) -> None:
    assert is_write_due(status, latest, seconds) is expected, reason


@pytest.mark.parametrize(
    ("status", "expected", "reason"),
    [
        (
            {"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2},
            True,
            "all replicas work",
        ),
        (
            {"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2},
            False,
            "the status is of an earlier generation",
        ),
        (
            {"observedGeneration": 2, "replicas": 3, "updatedReplicas": 2, "availableReplicas": 2},
            False,
            "one replica ends",
        ),
        (
            {"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 1},
            False,
            "one replica starts",
        ),
        ({}, False, "the status is empty"),
    ],
)
def test_a_rollout_is_complete_when_all_updated_replicas_are_available(
    status: dict[str, int], expected: bool, reason: str
) -> None:
    live = {"metadata": {"generation": 2}, "spec": {"replicas": 2}, "status": status}
    assert is_rolled_out(live) is expected, reason
