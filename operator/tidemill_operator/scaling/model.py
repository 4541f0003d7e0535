"""The frozen data classes of scaling decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

from tidemill_contract.duration import parse_ms
from tidemill_contract.resource.spec import ScalingSpec


class ScalingReason(StrEnum):
    """The reason for a scaling decision. Users' alert rules contain the values, so the values must not change."""

    SCALED_UP = "ScaledUp"
    """As many replicas as needed are added."""
    SCALED_DOWN = "ScaledDown"
    """Replicas are removed, because they were unnecessary throughout the stabilisation period."""
    STEP_LIMITED = "StepLimited"
    """The number of replicas changes by at most maxStepUp or maxStepDown."""
    WITHIN_TARGET = "WithinTarget"
    """The number of replicas equals the needed number."""
    AT_MAXIMUM = "AtMaximum"
    """More replicas are needed than maxReplicas allows."""
    LIMITED_BY_PARTITIONS = "LimitedByPartitions"
    """More replicas are needed than the topic has partitions."""
    AT_MINIMUM = "AtMinimum"
    """Fewer replicas would be enough, but minReplicas is reached."""
    COOLDOWN = "Cooldown"
    """More replicas are needed, but the last change was too recent."""
    STABILIZING = "Stabilizing"
    """Fewer replicas are enough now, but more were needed during the stabilisation period."""
    REBALANCING = "Rebalancing"
    """A change is needed, but the consumer group is rebalancing."""
    ROLLOUT_IN_PROGRESS = "RolloutInProgress"
    """A change is needed, but replicas are being started, stopped or replaced."""
    DATABASE_SATURATED = "DatabaseSaturated"
    """More replicas are needed, but all replicas wait for Postgres."""
    STAGE_WAITS = "StageWaits"
    """More replicas are needed, but the Python stage waits for a correction by a user."""
    FIGURES_MISSING = "FiguresMissing"
    """The lag could not be read, so the number of replicas does not change."""
    SCALED_TO_ZERO = "ScaledToZero"
    """No event has arrived for the time in scaleToZeroAfter."""
    WOKEN_BY_ARRIVAL = "WokenByArrival"
    """Events arrived while there were no replicas."""
    DRY_RUN = "DryRun"
    """A change is needed, but dryRun is set."""
    EXTERNAL = "External"
    """The mode is external, so an external autoscaler sets the replicas."""


CHANGES = frozenset(
    {
        ScalingReason.SCALED_UP,
        ScalingReason.SCALED_DOWN,
        ScalingReason.STEP_LIMITED,
        ScalingReason.SCALED_TO_ZERO,
        ScalingReason.WOKEN_BY_ARRIVAL,
    }
)


@dataclass(frozen=True)
class Settings:
    """The settings in `scaling` of the processors or the Python stage, as numbers.

    Without `max_step_up`, a step up doubles the number of replicas, or adds four if that is more.
    """

    mode: Literal["lag", "external"] = "lag"
    min_replicas: int = 1
    max_replicas: int | None = None
    lag_threshold: int = 100_000
    freshness_seconds: float | None = None
    catch_up_seconds: float = 300.0
    target_utilisation: float = 0.7
    scale_up_cooldown_seconds: float = 90.0
    scale_down_stabilization_seconds: float = 600.0
    max_step_up: int | None = None
    max_step_down: int | None = None
    poll_seconds: float = 15.0
    lookback_seconds: float = 120.0
    scale_to_zero_after_seconds: float | None = None
    dry_run: bool = False
    flush_seconds: float = 0.5

    @classmethod
    def of(cls, scaling: ScalingSpec, flush_interval: str) -> Settings:
        """Convert the spec's `scaling` with its durations to numbers."""

        def seconds(text: str) -> float:
            return parse_ms(text) / 1000

        idle = scaling.scale_to_zero_after
        return cls(
            mode=scaling.mode,
            min_replicas=scaling.min_replicas,
            max_replicas=scaling.max_replicas,
            lag_threshold=scaling.lag_threshold,
            freshness_seconds=seconds(scaling.target.freshness) if scaling.target else None,
            catch_up_seconds=seconds(scaling.catch_up),
            target_utilisation=scaling.target_utilization / 100,
            scale_up_cooldown_seconds=seconds(scaling.scale_up_cooldown),
            scale_down_stabilization_seconds=seconds(scaling.scale_down_stabilization),
            max_step_up=scaling.max_step_up,
            max_step_down=scaling.max_step_down,
            poll_seconds=seconds(scaling.poll_interval),
            lookback_seconds=seconds(scaling.lookback),
            scale_to_zero_after_seconds=seconds(idle) if idle else None,
            dry_run=scaling.dry_run,
            flush_seconds=seconds(flush_interval),
        )

    @property
    def floor(self) -> int:
        """Return the minimum number of replicas of a pipeline that is not scaled to zero."""
        return max(1, self.min_replicas)

    def ceiling(self, partitions: int) -> int:
        """Return the maximum number of replicas for a number of partitions."""
        return min(self.max_replicas or partitions, partitions)


@dataclass(frozen=True)
class PartitionFigures:
    """The positions of one partition. `position` is None if no position is committed."""

    start: int
    end: int
    position: int | None
    consumed: int

    @property
    def lag(self) -> int:
        """Return the number of unprocessed events. Without a committed position, all events are unprocessed."""
        return max(0, self.end - (self.start if self.position is None else max(self.position, self.start)))


@dataclass(frozen=True)
class ScalingFigures:
    """The measurements of one scaling poll.

    Attributes:
        stage_waits: whether the Python stage waits for a correction by a user.
    """

    partitions: Mapping[int, PartitionFigures]
    ready: int
    freshness_seconds: float | None = None
    rebalancing: bool = False
    rolling_out: bool = False
    database_saturated: bool = False
    stage_waits: bool = False

    @property
    def lag(self) -> int:
        """Return the number of unprocessed events in all partitions."""
        return sum(partition.lag for partition in self.partitions.values())


@dataclass(frozen=True)
class Load:
    """The load, computed from this poll and earlier polls.

    Attributes:
        arrival_rates: arriving events per second, by partition.
        arrival_growth: growth of the arrivals, in events per second per second.
        rate_per_replica: events per second that a busy replica processes, or None if unknown.
        proven: highest mean speed per replica measured so far, in events per second.
        stuck: partitions that have lag but do not advance.
    """

    lag: int
    lags: Mapping[int, int] = field(default_factory=dict)
    arrival_rates: Mapping[int, float] = field(default_factory=dict)
    arrival_growth: float = 0.0
    rate_per_replica: float | None = None
    proven: float = 0.0
    freshness_seconds: float | None = None
    stuck: tuple[int, ...] = ()

    @property
    def rate(self) -> float:
        """Return the arriving events per second."""
        return sum(self.arrival_rates.values())

    @property
    def partitions(self) -> list[int]:
        """Return the numbers of all partitions, in order."""
        return sorted({*self.lags, *self.stuck})

    def extrapolated(self, seconds: float) -> Load:
        """Return the load expected in `seconds` if the arrivals keep growing."""
        if not self.rate:
            return self
        factor = 1 + self.arrival_growth * seconds / self.rate
        return replace(self, arrival_rates={partition: rate * factor for partition, rate in self.arrival_rates.items()})


@dataclass(frozen=True)
class Need:
    """The number of replicas that the load requires, before any limit.

    Attributes:
        replicas: required number of replicas.
        useful: required number of replicas, but at most the number of partitions.
        by_lag: for each partition, the fraction of a replica that its lag requires.
        by_rate: for each partition, the fraction of a replica that its arriving events require.
    """

    replicas: int
    useful: int
    by_lag: tuple[float, ...] = ()
    by_rate: tuple[float, ...] = ()
    has_hot_partition: bool = False
    utilisation: float = 0.7


@dataclass(frozen=True)
class Decision:
    """A scaling decision and its reason. With dryRun, `desired` is reported, but not applied."""

    at: float
    current: int
    desired: int
    replicas: int
    reason: ScalingReason
    need: int | None = None
    limited_by: str = ""
    load: Load | None = None
    lines: tuple[str, ...] = ()

    @property
    def changes_replicas(self) -> bool:
        """Return whether the decision changes the number of replicas."""
        return self.replicas != self.current
