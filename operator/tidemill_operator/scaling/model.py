"""What a decision is made from and what it is: settings, figures, reasons. Frozen, no behaviour of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

from tidemill_contract.duration import parse_ms
from tidemill_contract.resource.spec import ProcessorSpec


class Reason(StrEnum):
    """Why replicas are to be what they are. Users and alerts rely on the spelling."""

    SCALED_UP = "ScaledUp"
    """More replicas, as many as are needed."""
    SCALED_DOWN = "ScaledDown"
    """Fewer replicas: no more were needed for the whole stabilisation."""
    STEP_LIMITED = "StepLimited"
    """A change towards what is needed, cut to maxStepUp or maxStepDown; the rest follows."""
    WITHIN_TARGET = "WithinTarget"
    """Replicas are as many as are needed."""
    AT_MAXIMUM = "AtMaximum"
    """More are needed than maxReplicas allows."""
    LIMITED_BY_PARTITIONS = "LimitedByPartitions"
    """More are needed than the topic has partitions."""
    AT_MINIMUM = "AtMinimum"
    """Fewer would do, but minReplicas is reached."""
    COOLDOWN = "Cooldown"
    """More are needed; the last change was too short a time ago."""
    STABILIZING = "Stabilizing"
    """Fewer would do, but not yet for the whole stabilisation."""
    REBALANCING = "Rebalancing"
    """A change is needed; the consumer group is just sharing out partitions."""
    ROLLOUT_IN_PROGRESS = "RolloutInProgress"
    """A change is needed; replicas are just being started, stopped or replaced."""
    DATABASE_SATURATED = "DatabaseSaturated"
    """More are needed, but all wait for Postgres: further replicas would only wait too."""
    FIGURES_MISSING = "FiguresMissing"
    """Lag could not be read: replicas stay."""
    SCALED_TO_ZERO = "ScaledToZero"
    """Nothing has arrived for scaleToZeroAfter."""
    WOKEN_BY_ARRIVAL = "WokenByArrival"
    """There were no replicas and events arrived."""
    DRY_RUN = "DryRun"
    """A change is needed and only told, as dryRun asks."""
    EXTERNAL = "External"
    """mode: external: somebody else decides."""


CHANGES = frozenset(
    {Reason.SCALED_UP, Reason.SCALED_DOWN, Reason.STEP_LIMITED, Reason.SCALED_TO_ZERO, Reason.WOKEN_BY_ARRIVAL}
)


@dataclass(frozen=True)
class Settings:
    """`spec.processor.scaling` in numbers; its fields say what they mean.

    Attributes:
        max_step_up, max_step_down: at once; None: as many again, four at the least, and any number down.
        flush_seconds: the processor's flushInterval: lag of a few of them is only what is under way.
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
        """The settings of a pipeline; None: it does not scale by itself at all."""
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
        """Fewest replicas while events arrive: at least one, for zero is a state of its own."""
        return max(1, self.min_replicas)

    def ceiling(self, partitions: int) -> int:
        """Most replicas that are allowed and have something to read."""
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
        """Events not yet processed; all that Kafka has, if none ever was."""
        return max(0, self.end - (self.start if self.position is None else max(self.position, self.start)))


@dataclass(frozen=True)
class Figures:
    """What was read in one poll.

    Attributes:
        partitions: by number.
        ready: replicas that work.
        freshness_seconds: from arrival to queryable, as measured; None: not measured.
        rebalancing: the consumer group shares out its partitions.
        rolling_out: replicas are being started, stopped or replaced.
        database_saturated: Postgres is what all wait for.
    """

    partitions: Mapping[int, PartitionFigures]
    ready: int
    freshness_seconds: float | None = None
    rebalancing: bool = False
    rolling_out: bool = False
    database_saturated: bool = False

    @property
    def lag(self) -> int:
        """Events not yet processed, of all partitions."""
        return sum(partition.lag for partition in self.partitions.values())


@dataclass(frozen=True)
class Load:
    """What the figures of this and earlier polls say.

    Attributes:
        lag: of all partitions.
        lags: of the partitions that replicas can help.
        arriving: events a second, by partition.
        rising: events a second by which arrivals have grown each second, lately.
        rate_per_replica: events a second that one busy replica works off; None: never seen.
        proven: events a second that a replica was seen to do, busy or not.
        freshness_seconds: from arrival to queryable, measured or reckoned; None: unknown.
        stuck: partitions whose position has not moved for some polls, while others' did.
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
        """Events that arrive a second."""
        return sum(self.arriving.values())

    @property
    def partitions(self) -> list[int]:
        """All of them, in order."""
        return sorted({*self.lags, *self.stuck})

    def risen(self, seconds: float) -> Load:
        """The same with the arrivals that there will be if they go on rising for so long."""
        if not self.rate:
            return self
        factor = 1 + self.rising * seconds / self.rate
        return replace(self, arriving={partition: rate * factor for partition, rate in self.arriving.items()})


@dataclass(frozen=True)
class Need:
    """How many replicas the load asks for, before any limit.

    Attributes:
        replicas: the formula's result.
        useful: the same, with each partition counted for one replica at most.
        by_lag: shares of a replica that each partition's lag asks for, by position; at most 1 each.
        by_rate: the same for its arrivals and for catching up, at `utilisation`.
        hot: whether a partition asks for more than the one replica that can read it.
        utilisation: that a replica is chosen for.
    """

    replicas: int
    useful: int
    by_lag: tuple[float, ...] = ()
    by_rate: tuple[float, ...] = ()
    hot: bool = False
    utilisation: float = 0.7


@dataclass(frozen=True)
class Decision:
    """How many replicas there are to be, and why.

    Attributes:
        at: epoch seconds.
        current: replicas that were set.
        desired: replicas that are right now; in a dry run they are only told.
        replicas: replicas to set.
        need: what the figures ask for, before any limit; None: unknown.
        reason: from the closed set.
        limited_by: the knob or fact that keeps `desired` from what is needed; empty: none.
        lines: the reckoning, for people.
    """

    at: float
    current: int
    desired: int
    replicas: int
    reason: Reason
    need: int | None = None
    limited_by: str = ""
    load: Load | None = None
    lines: tuple[str, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether replicas are to be set anew."""
        return self.replicas != self.current
