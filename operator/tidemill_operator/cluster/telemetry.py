"""The Prometheus metrics of the operator."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from prometheus_client import Counter, Gauge, Histogram

from tidemill_contract.resource.spec import ScaledComponent
from tidemill_operator.cluster.queue import Result
from tidemill_operator.keys import Key
from tidemill_operator.observer.condition_metrics import ConditionExporter
from tidemill_operator.outcome import Outcome

_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STATES = ("ready", "progressing", "stalled", "suspended", "paused")

RECONCILIATIONS = Counter("tidemill_operator_reconciliations_total", "Passes over a resource.", ["result"])
_PIPELINE = ("namespace", "pipeline")
FAILED = Counter(
    "tidemill_operator_reconciliations_failed_total",
    "Passes that failed because a server did not answer, or refused a request.",
    _PIPELINE,
)
DURATION = Histogram(
    "tidemill_operator_reconciliation_duration_seconds", "Duration of passes and of their phases.", ["phase"],
    buckets=_BUCKETS,
)  # fmt: skip
CHANGES = Counter(
    "tidemill_operator_changes_total",
    "Changes that passes made, such as created topics or updated Deployments.",
    ["phase"],
)
PIPELINES = Gauge("tidemill_operator_pipelines", "Pipelines by state.", ["state"])
LEADER = Gauge("tidemill_operator_leader", "1 if this replica leads, else 0.")
DESIRED = Gauge(
    "tidemill_operator_scaling_desired_replicas",
    "Number of processors according to the last scaling decision.",
    _PIPELINE,
)
CURRENT = Gauge(
    "tidemill_operator_scaling_current_replicas",
    "Number of processors at the time of the last scaling decision.",
    _PIPELINE,
)
STAGE_DESIRED = Gauge(
    "tidemill_operator_scaling_stage_desired_replicas",
    "Number of Python stage processes according to the last scaling decision.",
    _PIPELINE,
)
STAGE_CURRENT = Gauge(
    "tidemill_operator_scaling_stage_current_replicas",
    "Number of Python stage processes at the time of the last scaling decision.",
    _PIPELINE,
)
DECISIONS = Counter("tidemill_operator_scaling_decisions_total", "Scaling decisions, one per poll.", ["reason"])

_REPLICAS: Mapping[ScaledComponent, tuple[Gauge, Gauge]] = {
    "processor": (DESIRED, CURRENT),
    "stage": (STAGE_DESIRED, STAGE_CURRENT),
}

T = TypeVar("T")


@dataclass
class RunningPass:
    """A running pass."""

    result: Result = Result.FAILED


class OperatorMetrics:
    """Updates the operator's metrics, in several threads at once."""

    def __init__(self) -> None:
        self._states: dict[Key, str] = {}
        self._conditions = ConditionExporter()
        self._lock = threading.Lock()
        for state in _STATES:
            PIPELINES.labels(state).set(0)

    @contextmanager
    def measure_pass(self, key: Key) -> Iterator[RunningPass]:
        """Measure the duration of a pass, and count the pass."""
        running_pass, started_at = RunningPass(), time.monotonic()
        failed = FAILED.labels(key.namespace, key.name)
        try:
            yield running_pass
        finally:
            DURATION.labels("pass").observe(time.monotonic() - started_at)
            RECONCILIATIONS.labels(running_pass.result.value).inc()
            if running_pass.result is Result.FAILED:
                failed.inc()

    def record_state(self, key: Key, status: Mapping[str, Any]) -> None:
        """Update the metrics of a pipeline's state and conditions."""
        self._set_state(key, state(status))
        self._conditions.export(key, key.namespace, key.name, status.get("conditions", ()))

    def record_scaling(self, key: Key, decision: Mapping[str, Any], component: ScaledComponent = "processor") -> None:
        """Update the metrics of scaling after a decision."""
        DECISIONS.labels(decision["reason"]).inc()
        desired, current = _REPLICAS[component]
        desired.labels(key.namespace, key.name).set(decision["desired"])
        current.labels(key.namespace, key.name).set(decision["current"])

    def remove_scaling(self, key: Key, component: ScaledComponent = "processor") -> None:
        """Remove a component's scaling metrics."""
        for gauge in _REPLICAS[component]:
            with suppress(KeyError):
                gauge.remove(key.namespace, key.name)

    def forget(self, key: Key) -> None:
        """Remove a pipeline's metrics."""
        self._set_state(key, None)
        self._conditions.export(key, key.namespace, key.name, ())
        with suppress(KeyError):
            FAILED.remove(key.namespace, key.name)

    def _set_state(self, key: Key, pipeline_state: str | None) -> None:
        with self._lock:
            if pipeline_state is None:
                self._states.pop(key, None)
            else:
                self._states[key] = pipeline_state
            for name in _STATES:
                PIPELINES.labels(name).set(sum(recorded == name for recorded in self._states.values()))


def state(status: Mapping[str, Any]) -> str:
    """Return a pipeline's state in one word."""
    conditions = {condition["type"]: condition["status"] for condition in status.get("conditions", ())}
    for condition, word in (("ReconciliationPaused", "paused"), ("Stalled", "stalled"), ("Suspended", "suspended")):
        if conditions.get(condition) == "True":
            return word
    return "ready" if conditions.get("Ready") == "True" else "progressing"


class _TimedActuator:
    def __init__(self, inner: Any, phase: str) -> None:
        self._inner, self._phase = inner, phase

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            with DURATION.labels(self._phase).time():
                result = method(*arguments, **keywords)
            if isinstance(result, list):
                CHANGES.labels(self._phase).inc(sum(item.changed for item in result if isinstance(item, Outcome)))
            return result

        return call


def timed(actuator: T, phase: str) -> T:
    """Return an actuator whose calls are measured under the name `phase`."""
    return cast(T, _TimedActuator(actuator, phase))
