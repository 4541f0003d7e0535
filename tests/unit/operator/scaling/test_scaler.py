"""Scaling as both runtimes do it, on a site in memory; and when a cluster writes what it remembers and tells."""

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
    found = AnalyticsPipeline.model_validate(document).spec
    refs = tuple(AggregationRef(name=a.name) for a in found.aggregations)
    return PipelineConfig(namespace="n", name="flights", generation=1, spec=found, aggregations=refs)


@dataclass
class Site:
    """One pipeline whose processors are as many as were decided on at once."""

    config: PipelineConfig
    running: int = 1
    shows_running: bool = True
    kept: Memory = field(default_factory=Memory)
    told: list[tuple[int, int]] = field(default_factory=list)
    lag: int | None = 0

    def look(self, key: str) -> Running | None:
        return Running(self.config, self.running, self.running)

    def remembered(self, key: str) -> Memory:
        if self.kept.replicas is None and self.shows_running:
            return replace(self.kept, replicas=self.running)
        return self.kept

    def remember(self, key: str, memory: Memory, *, changed: bool) -> None:
        self.kept = memory

    def tell(self, key: str, decision: Decision) -> None:
        self.told.append((decision.current, decision.replicas))
        self.running = decision.replicas

    def read(self, watched: Watched, *, ready: int, rolling_out: bool) -> Figures:
        if self.lag is None:
            raise TidemillError(Reason.UNREACHABLE, "Kafka does not answer")
        parts = {p: PartitionFigures(0, self.lag, 0, 0) for p in range(4)}
        return Figures(parts, ready, rolling_out=rolling_out)


def scaler(site: Site) -> Scaler[str]:
    return Scaler(site, site)


def test_another_scaler_goes_on_with_what_was_remembered() -> None:
    site = Site(config(LAG), lag=100)
    first = scaler(site)
    assert first.poll("p") == 15.0
    assert site.told == [(1, 4)]
    second = scaler(site)
    assert second.replicas("p") == 4
    second.poll("p")
    assert second.history("p")[0]["reason"] == "ScaledUp"


def test_missing_figures_keep_what_runs() -> None:
    """Also where nothing was decided yet."""
    site = Site(config(LAG), running=3, lag=None)
    deciding = scaler(site)
    deciding.poll("p")
    assert deciding.replicas("p") == 3
    assert deciding.status("p")["reason"] == "FiguresMissing"
    assert site.told == []


def test_processors_that_do_not_all_work_are_not_changed() -> None:
    site = Site(config(LAG), lag=100, running=2, kept=Memory(replicas=1))
    deciding = scaler(site)
    deciding.poll("p")
    assert (deciding.replicas("p"), deciding.status("p")["reason"]) == (1, "RolloutInProgress")


def test_who_scales_no_more_begins_anew_with_what_runs_then() -> None:
    site = Site(config(LAG), lag=100)
    deciding = scaler(site)
    deciding.poll("p")
    site.config, site.running, site.lag = config(None), 2, 0
    assert deciding.poll("p") is None
    assert deciding.status("p") == {}
    assert site.kept == Memory()
    assert deciding.replicas("p") == 2


def test_who_is_suspended_goes_on_as_before() -> None:
    site = Site(config(LAG), lag=100)
    deciding = scaler(site)
    deciding.poll("p")
    site.config, site.running = config(LAG, suspend=True), 0
    assert deciding.poll("p") is None
    assert (deciding.replicas("p"), deciding.status("p")) == (4, {})


def test_mode_external_tells_what_runs_and_decides_nothing() -> None:
    site = Site(config({"mode": "external"}), running=3, lag=100)
    deciding = scaler(site)
    deciding.poll("p")
    told = deciding.status("p")
    assert (told["current"], told["desired"], told["reason"]) == (3, 3, "External")
    assert (site.told, site.kept.replicas) == ([], None)
    site.config, site.running, site.lag = config(LAG), 4, 0
    assert deciding.replicas("p") == 4, "what others have set is where it begins"


def test_a_dry_run_reports_the_decision_and_changes_no_replicas() -> None:
    site = Site(config({**LAG, "dryRun": True}), lag=100)
    deciding = scaler(site)
    deciding.poll("p")
    told = deciding.status("p")
    assert (told["current"], told["desired"], told["reason"]) == (1, 4, "DryRun")
    assert (site.told, deciding.replicas("p")) == ([], 1)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"replicas": "x", "state": {}}'])
def test_a_broken_memory_is_an_empty_one(text: str) -> None:
    assert Memory.from_json(text) == Memory()


def test_a_memory_is_read_as_it_was_written() -> None:
    memory = Memory(State(wanted=((1.0, 2),), patience=2), 3)
    assert Memory.from_json(memory.to_json()) == memory


def test_the_largest_memory_fits_in_a_config_map() -> None:
    """1,024 partitions are what a topic may have at most."""
    ends = {p: (10**15, 10**15, 10**12) for p in range(1024)}
    state = State(seen=ends, standing=dict.fromkeys(ends, 1e9 / 3), wanted=tuple((1e9 / 3, n) for n in range(1024)))
    text = manifest(Scalable(Key("n", "p", "u"), "processor"), Memory(state, 3))["data"]["memory.json"]
    assert len(text) < 256 * 1024


@pytest.mark.parametrize(
    ("later", "differs", "reason"),
    [
        (Memory(State(polled_at=2.0, wanted=((2.0, 1),)), 1), False, "time went by"),
        (Memory(State(polled_at=2.0, wanted=((2.0, 2),)), 1), True, "more are wanted"),
        (Memory(State(polled_at=2.0, wanted=((2.0, 1),), seen={0: (1, 0, 1)}), 1), True, "events came"),
        (Memory(State(polled_at=2.0, wanted=((2.0, 1),)), 2), True, "a change"),
    ],
)
def test_only_what_matters_is_written(later: Memory, differs: bool, reason: str) -> None:
    before = Memory(State(polled_at=1.0, wanted=((1.0, 1),)), 1)
    assert (essence(later) != essence(before)) is differs, reason


TOLD = {"mode": "lag", "desired": 1, "reason": "WithinTarget", "lag": 5}


@pytest.mark.parametrize(
    ("told", "found", "seconds", "expected", "reason"),
    [
        (None, TOLD, 0.0, True, "nothing is told yet"),
        (TOLD, TOLD, 3600.0, False, "it says the same"),
        (TOLD, {**TOLD, "lag": 6}, 59.0, False, "other figures have time"),
        (TOLD, {**TOLD, "lag": 6}, 60.0, True, "they had"),
        (TOLD, {**TOLD, "desired": 2}, 0.0, True, "another number"),
        (TOLD, {**TOLD, "reason": "Stabilizing"}, 0.0, True, "another reason"),
    ],
)
def test_a_status_is_written_for_decisions_at_once_and_for_figures_once_a_minute(
    told: dict[str, Any] | None, found: dict[str, Any], seconds: float, expected: bool, reason: str
) -> None:
    assert is_news(told, found, seconds) is expected, reason


@pytest.mark.parametrize(
    ("status", "expected", "reason"),
    [
        ({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}, True, "all work"),
        ({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}, False, "of before"),
        ({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 2, "availableReplicas": 2}, False, "one ends"),
        ({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 1}, False, "one starts"),
        ({}, False, "nothing is known"),
    ],
)
def test_a_deployment_is_rolled_out(status: dict[str, int], expected: bool, reason: str) -> None:
    live = {"metadata": {"generation": 2}, "spec": {"replicas": 2}, "status": status}
    assert rolled_out(live) is expected, reason
