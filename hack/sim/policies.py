"""Policies with one interface: Tidemill's, and the formulas of KEDA and of Flink's Kubernetes operator.

The other policies follow their documentation and source, with their defaults. Only the formulas are implemented. All
policies run in the same model, although a real Flink job restarts as a whole when it is rescaled.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from tidemill_operator.scaling import ScalingFigures, Settings, State, decide


@dataclass(frozen=True)
class View:
    """The figures that a policy gets at a poll.

    Attributes:
        figures: The figures, or None while they are missing.
        busy: The share of time, from 0 to 1, in which the busiest replica worked since the last poll.
    """

    now: float
    replicas: int
    partitions: int
    figures: ScalingFigures | None
    busy: float


class Policy(Protocol):
    """Decides on the number of replicas."""

    name: str

    def decide(self, view: View) -> tuple[int, str]:
        """Return the number of replicas, and the reason in a word."""
        ...


class Tidemill:
    """The operator's policy. Its state is serialised and read again at each poll, as in the operator."""

    def __init__(self, settings: Settings | None = None, *, name: str = "tidemill") -> None:
        self.name = name
        self._settings = settings or Settings()
        self._state = State().to_json()

    def decide(self, view: View) -> tuple[int, str]:
        """Return the decision of `scaling.decide`."""
        state = State.from_json(self._state)
        decision, state = decide(self._settings, state, view.figures, current=view.replicas, now=view.now)
        self._state = state.to_json()
        return decision.replicas, decision.reason.value


class Keda:
    """KEDA's Kafka scaler with a HorizontalPodAutoscaler (HPA).

    - The metric is the total lag as AverageValue, at most threshold · partitions (allowIdleConsumers: false).
    - The HPA wants ceil(lag / threshold) replicas, unless lag / (threshold · replicas) is within 1 ± 0.1.
    - It adds at most four replicas, or as many as there are, in 15 s.
    - It reduces replicas to the highest recommendation of the last 300 s (stabilizationWindowSeconds).

    Sources: keda.sh/docs, scaler apache-kafka; Kubernetes, horizontal-pod-autoscale, algorithm details and default
    behaviour.
    """

    TOLERANCE = 0.1

    def __init__(self, threshold: float = 100_000, *, stabilization_seconds: float = 300.0, name: str = "keda") -> None:
        self.name = name
        self._threshold, self._stabilization = threshold, stabilization_seconds
        self._recommended: deque[tuple[float, int]] = deque()

    def decide(self, view: View) -> tuple[int, str]:
        """Run one pass of the HPA."""
        if view.figures is None:
            return view.replicas, "missing"
        lag = min(view.figures.lag, self._threshold * view.partitions)
        ratio = lag / (self._threshold * view.replicas)
        wanted = view.replicas if abs(1 - ratio) <= self.TOLERANCE else math.ceil(lag / self._threshold)
        wanted = min(max(wanted, 1), view.partitions)
        self._recommended.append((view.now, wanted))
        while self._recommended[0][0] <= view.now - self._stabilization:
            self._recommended.popleft()
        if wanted > view.replicas:
            return min(wanted, max(view.replicas + 4, view.replicas * 2)), "up"
        return min(view.replicas, max(replicas for _, replicas in self._recommended)), "down"


@dataclass(frozen=True)
class FlinkSettings:
    """Options of Flink's autoscaler, with the autoscaler's names and defaults; times are in seconds."""

    target_utilization: float = 0.7
    utilization_boundary: float = 0.3
    metrics_window: float = 900.0
    stabilization_interval: float = 300.0
    catch_up_duration: float = 1800.0
    restart_time: float = 300.0
    scale_down_interval: float = 3600.0
    max_scale_down_factor: float = 0.6
    backlog_lag_threshold: float = 300.0


# The documented values for latency-bound jobs (window 5 m, stabilisation 1 m), the restart time of this model (30 s),
# and Tidemill's defaults for the catch-up time and the wait before scaling down.
FLINK_TUNED = FlinkSettings(
    utilization_boundary=0.2,
    metrics_window=300.0,
    stabilization_interval=60.0,
    catch_up_duration=300.0,
    restart_time=30.0,
    scale_down_interval=600.0,
)


@dataclass
class Flink:
    """The autoscaler of Flink's Kubernetes operator, for the source vertex.

    - target = lag / catch-up + arriving · restart / catch-up + arriving / utilisation.
    - true rate = processed / busy time of the busiest replica.
    - parallelism = ceil(current · target / true rate), rounded up to a divisor of the number of partitions.
    - Nothing changes while the true rate is between the targets at utilisation + boundary and utilisation - boundary.
    - With a backlog of more than five minutes, replicas are not reduced.
    - Rates are averages over the metrics window, which restarts after each rescaling and its stabilisation.
    - Replicas are reduced to the highest recommendation of scale-down.interval.

    Source: apache/flink-kubernetes-operator, flink-autoscaler: JobVertexScaler, ScalingMetricEvaluator,
    AutoScalerUtils, AutoScalerOptions.
    """

    settings: FlinkSettings = field(default_factory=FlinkSettings)
    name: str = "flink"
    _samples: deque[tuple[float, int, int, float]] = field(default_factory=deque)
    _fresh_from: float = 0.0
    _down: deque[tuple[float, int]] = field(default_factory=deque)
    _down_since: float | None = None

    def decide(self, view: View) -> tuple[int, str]:
        """Run one evaluation."""
        s = self.settings
        if view.figures is None or view.now < self._fresh_from:
            return view.replicas, "stabilising"
        consumed = sum(partition.consumed for partition in view.figures.partitions.values())
        self._samples.append((view.now, view.figures.lag, consumed, view.busy))
        while self._samples[0][0] < view.now - s.metrics_window:
            self._samples.popleft()
        if view.now - max(self._fresh_from, self._samples[0][0]) < s.metrics_window - 1:
            return view.replicas, "window"
        wanted = self._parallelism(view)
        if wanted < view.replicas:
            wanted = self._delay_decrease(wanted, view)
        else:
            self._down.clear()
            self._down_since = None
        if wanted != view.replicas:
            self._samples.clear()
            self._fresh_from = view.now + s.stabilization_interval
        return wanted, "evaluated"

    def _parallelism(self, view: View) -> int:
        s = self.settings
        (began, lag_then, consumed_then, _), (_, lag, consumed, _) = self._samples[0], self._samples[-1]
        seconds = view.now - began
        processed = (consumed - consumed_then) / seconds
        arriving = max(0.0, processed + (lag - lag_then) / seconds)
        busy = sum(sample[3] for sample in list(self._samples)[1:]) / (len(self._samples) - 1)
        if busy == 0 or processed == 0:
            return view.replicas
        true_rate = processed / busy
        backlog = lag > s.backlog_lag_threshold * processed
        upper = 1.0 if backlog else min(1.0, s.target_utilization + s.utilization_boundary)
        lower = 0.0 if backlog else max(0.0, s.target_utilization - s.utilization_boundary)
        catch_up, restart = lag / s.catch_up_duration, arriving * s.restart_time / s.catch_up_duration
        fullest = math.inf if lower == 0 else catch_up + restart + arriving / lower
        if catch_up + arriving / upper <= true_rate <= fullest:
            return view.replicas
        factor = (catch_up + restart + arriving / s.target_utilization) / true_rate
        wanted = math.ceil(view.replicas * max(factor, 1 - s.max_scale_down_factor))
        return self._divisor(min(max(wanted, 1), view.partitions), view)

    def _divisor(self, wanted: int, view: View) -> int:
        most = view.partitions if wanted > view.replicas else view.replicas
        return next((p for p in range(wanted, most + 1) if view.partitions % p == 0), wanted)

    def _delay_decrease(self, wanted: int, view: View) -> int:
        """Return fewer replicas only if fewer were wanted for the whole interval: the highest of these numbers."""
        self._down_since = view.now if self._down_since is None else self._down_since
        self._down.append((view.now, wanted))
        oldest = view.now - self.settings.scale_down_interval
        while self._down[0][0] < oldest:
            self._down.popleft()
        if self._down_since > oldest:
            return view.replicas
        return max(replicas for _, replicas in self._down)
