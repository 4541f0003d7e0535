"""Tests of the operator's metrics: conditions of pipelines, failed passes and decisions about replicas."""

from __future__ import annotations

from typing import Any

from prometheus_client import REGISTRY

from tidemill_operator.cluster.queue import Result
from tidemill_operator.cluster.telemetry import OperatorMetrics
from tidemill_operator.keys import Key
from tidemill_operator.observer.condition_metrics import ConditionExporter


def status(*conditions: tuple[str, str, str]) -> dict[str, Any]:
    return {"conditions": [{"type": kind, "status": state, "reason": reason} for kind, state, reason in conditions]}


def measured(pipeline: str) -> set[tuple[str, str, str]]:
    """Return the conditions of a pipeline as Prometheus reads them."""
    families = (family for family in REGISTRY.collect() if family.name == "tidemill_pipeline_condition")
    samples = [sample for family in families for sample in family.samples if sample.labels["pipeline"] == pipeline]
    assert all(sample.value == 1 for sample in samples)
    return {(s.labels["condition"], s.labels["status"], s.labels["reason"]) for s in samples}


def failures(pipeline: str) -> float | None:
    labels = {"namespace": "ns", "pipeline": pipeline}
    return REGISTRY.get_sample_value("tidemill_operator_reconciliations_failed_total", labels)


def test_only_the_current_conditions_are_measured() -> None:
    metrics, key = OperatorMetrics(), Key("ns", "current", "1")
    metrics.record_state(key, status(("Ready", "True", "Applied"), ("EventsLost", "True", "TopicReplaced")))
    assert measured("current") == {("Ready", "True", "Applied"), ("EventsLost", "True", "TopicReplaced")}
    metrics.record_state(key, status(("Ready", "False", "Waiting")))
    assert measured("current") == {("Ready", "False", "Waiting")}
    metrics.forget(key)
    assert measured("current") == set()


def test_a_recreated_pipeline_keeps_its_conditions() -> None:
    """The end of the deleted resource may be noticed after the first pass of the new resource."""
    metrics, old, new = OperatorMetrics(), Key("ns", "recreated", "1"), Key("ns", "recreated", "2")
    for key in (old, new):
        metrics.record_state(key, status(("Ready", "True", "Applied")))
    metrics.forget(old)
    assert measured("recreated") == {("Ready", "True", "Applied")}


def test_only_conditions_of_listed_pipelines_are_kept() -> None:
    """`tidemill up` keeps the metrics of a list of pipelines."""
    conditions = ConditionExporter()
    for name in ("kept", "dropped"):
        conditions.export(name, "ns", name, status(("Ready", "True", "Applied"))["conditions"])
    conditions.keep_only(["kept"])
    assert (measured("kept"), measured("dropped")) == ({("Ready", "True", "Applied")}, set())


def test_failed_passes_are_counted_by_pipeline() -> None:
    """The counter begins at zero, so the first failure is an increase."""
    metrics, key = OperatorMetrics(), Key("ns", "failing", "1")
    with metrics.measure_pass(key) as measured_pass:
        measured_pass.result = Result.SETTLED
    assert failures("failing") == 0
    with metrics.measure_pass(key):
        pass
    assert failures("failing") == 1
    metrics.forget(key)
    assert failures("failing") is None


def replicas(pipeline: str, name: str) -> float | None:
    labels = {"namespace": "ns", "pipeline": pipeline}
    return REGISTRY.get_sample_value(f"tidemill_operator_scaling_{name}_replicas", labels)


def test_decisions_about_processors_and_the_stage_have_different_metrics() -> None:
    metrics, key = OperatorMetrics(), Key("ns", "staged", "1")
    metrics.record_scaling(key, {"reason": "WithinTarget", "desired": 1, "current": 1})
    metrics.record_scaling(key, {"reason": "ScaledUp", "desired": 3, "current": 2}, "stage")
    assert (replicas("staged", "desired"), replicas("staged", "current")) == (1, 1)
    assert (replicas("staged", "stage_desired"), replicas("staged", "stage_current")) == (3, 2)
    metrics.remove_scaling(key, "stage")
    assert (replicas("staged", "desired"), replicas("staged", "stage_desired")) == (1, None)
    metrics.remove_scaling(key)
