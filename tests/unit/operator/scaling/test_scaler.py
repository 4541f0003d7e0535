"""Tests of scaling as both runtimes do it, on a site in memory. A cluster's stored state is tested too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tidemill_contract.resource.documents import load_documents
from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_operator.actuators.kubernetes.rollout import rolled_out
from tidemill_operator.cluster.scaling import essence, is_news, manifest
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.observer.scaling_figures import Watched
from tidemill_operator.scaler import Memory, Running, Scalable, Scaler
from tidemill_operator.scaling import Decision, Figures, PartitionFigures, State

EXAMPLE = Path(__file__).parents[4] / "crds" / "examples" / "flights.yaml"
LAG = {"scaleUpCooldown": "1s", "lagThreshold": 100}


def config(scaling: Mapping[str, Any] | None, **spec: Any) -> PipelineConfig:
    document = load_documents(EXAMPLE.read_text())[0]
    document["spec"] |= {"processor": {"scaling": scaling} if scaling is not None else {}, **spec}
    validated = AnalyticsPipeline.model_validate(document).spec
    refs = tuple(AggregationRef(name=a.name) for a in validated.aggregations)
    return PipelineConfig(namespace="n", name="flights", generation=1, spec=validated, aggregations=refs)


@dataclass
class Site:
    """A pipeline in memory that runs the decided number of processors at once."""

    config: PipelineConfig
    running: int = 1
    shows_running: bool = True
    stored: Memory = field(default_factory=Memory)
    decided: list[tuple[int, int]] = field(default_factory=list)
    lag: int | None = 0

    def look(self, key: str) -> Running | None:
        return Running(self.config, self.running, self.running)

    def remembered(self, key: str) -> Memory:
        if self.stored.replicas is None and self.shows_running:
            return replace(self.stored, replicas=self.running)
        return self.stored

    def remember(self, key: str, memory: Memory, *, changed: bool) -> None:
        self.stored = memory

    def tell(self, key: str, decision: Decision) -> None:
        self.decided.append((decision.current, decision.replicas))
        self.running = decision.replicas

    def read(self, watched: Watched, *, ready: int, rolling_out: bool) -> Figures:
        if self.lag is None:
            raise TidemillError(Reason.UNREACHABLE, "Kafka does not answer")
        parts = {p: PartitionFigures(0, self.lag, 0, 0) for p in range(4)}
        return Figures(parts, ready, rolling_out=rolling_out)


def scaler(site: Site) -> Scaler[str]:
    return Scaler(site, site)


def test_another_scaler_continues_from_the_stored_memory() -> None:
    site = Site(config(LAG), lag=100)
    first = scaler(site)
    assert first.poll("p") == 15.0
    assert site.decided == [(1, 4)]
    second = scaler(site)
    assert second.replicas("p") == 4
    second.poll("p")
    assert second.history("p")[0]["reason"] == "ScaledUp"


def test_missing_figures_keep_the_running_number() -> None:
    """The same holds before the first decision."""
    site = Site(config(LAG), running=3, lag=None)
    deciding = scaler(site)
    deciding.poll("p")
    assert deciding.replicas("p") == 3
    assert deciding.status("p")["reason"] == "FiguresMissing"
    assert site.decided == []


def test_the_number_is_kept_while_not_all_processors_work() -> None:
    site = Site(config(LAG), lag=100, running=2, stored=Memory(replicas=1))
    deciding = scaler(site)
    deciding.poll("p")
    assert (deciding.replicas("p"), deciding.status("p")["reason"]) == (1, "RolloutInProgress")


def test_a_pipeline_without_scaling_forgets_the_decided_number() -> None:
    site = Site(config(LAG), lag=100)
    deciding = scaler(site)
    deciding.poll("p")
    site.config, site.running, site.lag = config(None), 2, 0
    assert deciding.poll("p") is None
    assert deciding.status("p") == {}
    assert site.stored == Memory()
    assert deciding.replicas("p") == 2


def test_a_suspended_pipeline_keeps_the_decided_number() -> None:
    site = Site(config(LAG), lag=100)
    deciding = scaler(site)
    deciding.poll("p")
    site.config, site.running = config(LAG, suspend=True), 0
    assert deciding.poll("p") is None
    assert (deciding.replicas("p"), deciding.status("p")) == (4, {})


def test_mode_external_reports_the_running_number_and_decides_nothing() -> None:
    site = Site(config({"mode": "external"}), running=3, lag=100)
    deciding = scaler(site)
    deciding.poll("p")
    status = deciding.status("p")
    assert (status["current"], status["desired"], status["reason"]) == (3, 3, "External")
    assert (site.decided, site.stored.replicas) == ([], None)
    site.config, site.running, site.lag = config(LAG), 4, 0
    assert deciding.replicas("p") == 4, "scaling starts from the number that others set"


def test_a_dry_run_reports_the_decision_and_changes_no_replicas() -> None:
    site = Site(config({**LAG, "dryRun": True}), lag=100)
    deciding = scaler(site)
    deciding.poll("p")
    status = deciding.status("p")
    assert (status["current"], status["desired"], status["reason"]) == (1, 4, "DryRun")
    assert (site.decided, deciding.replicas("p")) == ([], 1)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"replicas": "x", "state": {}}'])
def test_a_broken_memory_is_read_as_an_empty_one(text: str) -> None:
    assert Memory.from_json(text) == Memory()


def test_a_memory_is_read_as_it_was_written() -> None:
    memory = Memory(State(wanted=((1.0, 2),), patience=2), 3)
    assert Memory.from_json(memory.to_json()) == memory


def test_the_largest_memory_fits_in_a_config_map() -> None:
    """1,024 is the largest number of partitions of a topic."""
    ends = {p: (10**15, 10**15, 10**12) for p in range(1024)}
    state = State(seen=ends, standing=dict.fromkeys(ends, 1e9 / 3), wanted=tuple((1e9 / 3, n) for n in range(1024)))
    text = manifest(Scalable(Key("n", "p", "u"), "processor"), Memory(state, 3))["data"]["memory.json"]
    assert len(text) < 256 * 1024


@pytest.mark.parametrize(
    ("later", "differs", "reason"),
    [
        (Memory(State(polled_at=2.0, wanted=((2.0, 1),)), 1), False, "only time has passed"),
        (Memory(State(polled_at=2.0, wanted=((2.0, 2),)), 1), True, "more replicas are needed"),
        (Memory(State(polled_at=2.0, wanted=((2.0, 1),), seen={0: (1, 0, 1)}), 1), True, "events have arrived"),
        (Memory(State(polled_at=2.0, wanted=((2.0, 1),)), 2), True, "the number of replicas changed"),
    ],
)
def test_a_memory_is_written_only_if_more_than_time_has_changed(later: Memory, differs: bool, reason: str) -> None:
    before = Memory(State(polled_at=1.0, wanted=((1.0, 1),)), 1)
    assert (essence(later) != essence(before)) is differs, reason


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
    assert is_news(status, latest, seconds) is expected, reason


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
    assert rolled_out(live) is expected, reason
