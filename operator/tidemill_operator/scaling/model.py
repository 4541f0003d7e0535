"""The data of scaling decisions: settings, figures, load, need, reasons. Frozen, without behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

from tidemill_contract.duration import parse_ms
from tidemill_contract.resource.spec import ProcessorSpec


class ScalingReason(StrEnum):
    """The reason of a decision. Users and alerts rely on the spelling."""

    SCALED_UP = "ScaledUp"
    """More replicas, as many as are needed."""
    SCALED_DOWN = "ScaledDown"
    """Fewer replicas: no more were needed for the whole stabilisation."""
    STEP_LIMITED = "StepLimited"
    """A change towards what is needed, cut to maxStepUp or maxStepDown; the rest follows."""
    WITHIN_TARGET = "WithinTarget"
    """The number of replicas is as needed."""
    AT_MAXIMUM = "AtMaximum"
    """More are needed than maxReplicas allows."""
    LIMITED_BY_PARTITIONS = "LimitedByPartitions"
    """More are needed than the topic has partitions."""
    AT_MINIMUM = "AtMinimum"
    """Fewer would do, but minReplicas is reached."""
    COOLDOWN = "Cooldown"
    """More are needed, but the last change was too recent."""
    STABILIZING = "Stabilizing"
    """Fewer would do, but not yet for the whole stabilisation."""
    REBALANCING = "Rebalancing"
    """A change is needed, but the consumer group is rebalancing."""
    ROLLOUT_IN_PROGRESS = "RolloutInProgress"
    """A change is needed, but replicas are being started, stopped or replaced."""
    DATABASE_SATURATED = "DatabaseSaturated"
    """More are needed, but all wait for Postgres: further replicas would only wait too."""
    FIGURES_MISSING = "FiguresMissing"
    """Lag could not be read, so the number of replicas stays."""
    SCALED_TO_ZERO = "ScaledToZero"
    """Nothing has arrived for scaleToZeroAfter."""
    WOKEN_BY_ARRIVAL = "WokenByArrival"
    """There were no replicas and events arrived."""
    DRY_RUN = "DryRun"
    """A change is needed; dryRun only reports it."""
    EXTERNAL = "External"
    """mode: external: an HPA or KEDA decides."""


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
    """`spec.processor.scaling` as numbers; the resource describes its fields.

    Attributes:
        max_step_up, max_step_down: largest step; None: up by as many as run (at least four), down by any number.
        flush_seconds: the processor's flushInterval; lag of a few of them is normal.
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
    def of(cls, spec: ProcessorSpec) -> Settings | None:
        """Return the settings of a pipeline; None: it does not use scaling."""
        scaling = spec.scaling
        if scaling is None:
            return None

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
            flush_seconds=seconds(spec.flush_interval),
        )

    @property
    def floor(self) -> int:
        """The lowest number of replicas while events arrive; at least one, because zero is handled separately."""
        return max(1, self.min_replicas)

    def ceiling(self, partitions: int) -> int:
        """The highest number of replicas that is allowed and has partitions to read."""
        return min(self.max_replicas or partitions, partitions)


@dataclass(frozen=True)
class PartitionFigures:
    """A partition of the source topic.

    Attributes:
        start, end: Kafka's first offset and the one after the last.
        position: the next offset to be read, as committed in Postgres; None: nothing is committed yet.
        consumed: records committed so far, ever growing.
    """

    start: int
    end: int
    position: int | None
    consumed: int

    @property
    def lag(self) -> int:
        """The number of unprocessed events; without a position, all events of the partition."""
        return max(0, self.end - (self.start if self.position is None else max(self.position, self.start)))


@dataclass(frozen=True)
class Figures:
    """The figures of one poll.

    Attributes:
        partitions: by number.
        ready: number of ready replicas.
        freshness_seconds: measured time from arrival to queryable; None: not measured.
        rebalancing: the consumer group is rebalancing.
        rolling_out: replicas are being started, stopped or replaced.
        database_saturated: all replicas wait for Postgres.
    """

    partitions: Mapping[int, PartitionFigures]
    ready: int
    freshness_seconds: float | None = None
    rebalancing: bool = False
    rolling_out: bool = False
    database_saturated: bool = False

    @property
    def lag(self) -> int:
        """The number of unprocessed events of all partitions."""
        return sum(partition.lag for partition in self.partitions.values())


@dataclass(frozen=True)
class Load:
    """The load, computed from this poll and earlier ones.

    Attributes:
        lag: of all partitions.
        lags: of the partitions that replicas can help.
        arriving: events per second, by partition.
        rising: recent growth of arrivals, in events per second per second.
        rate_per_replica: events per second of one busy replica; None: never measured.
        proven: highest observed events per second of a replica, busy or not.
        freshness_seconds: from arrival to queryable, measured or computed; None: unknown.
        stuck: partitions whose position has not moved for some polls, while others have.
    """

    lag: int
    lags: Mapping[int, int] = field(default_factory=dict)
    arriving: Mapping[int, float] = field(default_factory=dict)
    rising: float = 0.0
    rate_per_replica: float | None = None
    proven: float = 0.0
    freshness_seconds: float | None = None
    stuck: tuple[int, ...] = ()

    @property
    def rate(self) -> float:
        """Arriving events per second."""
        return sum(self.arriving.values())

    @property
    def partitions(self) -> list[int]:
        """All partitions, in order."""
        return sorted({*self.lags, *self.stuck})

    def risen(self, seconds: float) -> Load:
        """Return the load with the arrivals extrapolated by `seconds`."""
        if not self.rate:
            return self
        factor = 1 + self.rising * seconds / self.rate
        return replace(self, arriving={partition: rate * factor for partition, rate in self.arriving.items()})


@dataclass(frozen=True)
class Need:
    """The number of replicas that the load requires, before any limit.

    Attributes:
        replicas: the formula's result.
        useful: the same, with each partition counted for one replica at most.
        by_lag: the share of a replica that each partition's lag requires, by position; at most 1 each.
        by_rate: the same for arrivals and catching up, at `utilisation`.
        hot: whether a partition needs more than one replica can do.
        utilisation: target load of a replica, as a share of its capacity.
    """

    replicas: int
    useful: int
    by_lag: tuple[float, ...] = ()
    by_rate: tuple[float, ...] = ()
    hot: bool = False
    utilisation: float = 0.7


@dataclass(frozen=True)
class Decision:
    """A scaling decision and its reason.

    Attributes:
        at: epoch seconds.
        current: replicas that were set.
        desired: the right number of replicas; with dryRun it is only reported.
        replicas: replicas to set.
        need: replicas that the figures require, before any limit; None: unknown.
        reason: from the closed set.
        limited_by: the setting or fact that keeps `desired` from the needed number; empty: none.
        lines: the calculation in words.
    """

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
    def changes(self) -> bool:
        """Whether the decision changes the replicas."""
        return self.replicas != self.current
