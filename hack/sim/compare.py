"""Fair comparisons: at equal service, who pays less, and who changes less?

The service is the time with more lag than is allowed. A policy with a knob can buy service with replicas, so each of
the others is run with a range of its main knob, and the cheapest setting that serves as well as Tidemill is what counts
(at most one poll more of time over). Some serve as well at no setting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from sim.policies import FLINK_TUNED, Flink, Keda, Policy, Tidemill
from sim.run import POLL_SECONDS, Result, run
from sim.shapes import Shape

Make = Callable[[], Policy]
KEDA_THRESHOLDS = (5_000, 10_000, 25_000, 50_000, 100_000, 200_000)
FLINK_UTILISATIONS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def _keda(threshold: int) -> Make:
    return lambda: Keda(threshold, name=f"keda {threshold // 1000}k")


def _flink(utilisation: float) -> Make:
    tuned = replace(FLINK_TUNED, target_utilization=utilisation)
    return lambda: Flink(tuned, name=f"flink {utilisation:.0%}")


FAMILIES: dict[str, tuple[Make, ...]] = {
    "keda": tuple(_keda(threshold) for threshold in KEDA_THRESHOLDS),
    "flink": (*(_flink(utilisation) for utilisation in FLINK_UTILISATIONS), lambda: Flink(name="flink as delivered")),
}


@dataclass(frozen=True)
class Rival:
    """The cheapest setting of a family that serves as well as Tidemill; None: none does."""

    family: str
    result: Result | None


@dataclass(frozen=True)
class Comparison:
    """A shape, worked through by all.

    Attributes:
        own: Tidemill's result.
        others: of every other setting.
        rivals: one for each family.
    """

    shape: Shape
    own: Result
    others: tuple[Result, ...]
    rivals: tuple[Rival, ...]


def compare(shape: Shape, make: Make = Tidemill) -> Comparison:
    """Run all policies through a shape."""
    own = run(shape, make())
    others: list[Result] = []
    rivals = []
    for family, makes in FAMILIES.items():
        results = [run(shape, other()) for other in makes]
        others += results
        rivals.append(Rival(family, _cheapest(results, over_seconds=own.over_seconds)))
    return Comparison(shape, own, tuple(others), tuple(rivals))


def _cheapest(results: Sequence[Result], *, over_seconds: float) -> Result | None:
    as_good = [result for result in results if result.over_seconds <= over_seconds + POLL_SECONDS]
    return min(as_good, key=lambda result: (result.replica_hours, result.changes), default=None)


def shortfalls(comparison: Comparison) -> Iterator[str]:
    """Where another serves as well and is cheaper by more than 2 %, or as cheap with fewer changes."""
    own = comparison.own
    for rival in comparison.rivals:
        other = rival.result
        if other is None:
            continue
        if own.replica_hours > other.replica_hours * 1.02:
            more = own.replica_hours / other.replica_hours - 1
            yield f"{own.shape}: {other.policy} serves as well; Tidemill pays {more:.0%} more replica-hours"
        elif own.changes > other.changes:
            less = 1 - own.replica_hours / other.replica_hours
            yield (
                f"{own.shape}: {other.policy} serves as well with {other.changes} changes instead of {own.changes};"
                f" Tidemill pays {less:.0%} fewer replica-hours"
            )
