"""Compares policies fairly: which one uses fewer replicas or changes less often, for the same service?

The service is the time with more lag than is allowed. A policy with knobs can buy service with replicas, so the others
are run with all combinations of theirs, and Tidemill with its defaults. Three questions are asked:

- for each shape, the cheapest setting that serves as well as Tidemill there (at most one poll more of time over): tuned
  to a load that was known beforehand;
- where that one is better, whether Tidemill is as good when it is tuned to the shape too;
- over all shapes, the settings that serve as well in all: what a user gets who does not know what comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from sim.oracle import fewest_hours
from sim.policies import FLINK_TUNED, Flink, Keda, Policy, Tidemill
from sim.run import POLL_SECONDS, Result, run
from sim.shapes import Shape
from tidemill_operator.scaling import Settings

Make = Callable[[], Policy]
KEDA_THRESHOLDS = (5_000, 10_000, 25_000, 50_000, 100_000, 200_000)
# The stabilisation of the HPA: its default, the value of Tidemill, and three times that value.
KEDA_MINUTES = (5, 10, 30)
FLINK_UTILISATIONS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
# Values of metrics.window and scale-down.interval in minutes. The defaults are 15 and 60.
FLINK_MINUTES = tuple(product((1, 5), (10, 30)))
TIDEMILL_UTILISATIONS = (0.6, 0.7, 0.8)
TIDEMILL_MINUTES = (4, 8, 10, 30)
TIDEMILL_THRESHOLDS = (50_000, 100_000)
# Replica-hours count as equal up to this factor.
EQUAL = 1.02


def _keda(threshold: int, minutes: int) -> Make:
    name = f"keda {threshold // 1000}k {minutes}m"
    return lambda: Keda(threshold, stabilization_seconds=60.0 * minutes, name=name)


def _flink(utilisation: float, window: int, down: int) -> Make:
    tuned = replace(
        FLINK_TUNED, target_utilization=utilisation, metrics_window=60.0 * window, scale_down_interval=60.0 * down
    )
    return lambda: Flink(tuned, name=f"flink {utilisation:.0%} {window}m {down}m")


def _tidemill(utilisation: float, minutes: int, threshold: int) -> Make:
    tuned = Settings(
        target_utilisation=utilisation, scale_down_stabilization_seconds=60.0 * minutes, lag_threshold=threshold
    )
    return lambda: Tidemill(tuned, name=f"tidemill {utilisation:.0%} {minutes}m {threshold // 1000}k")


TUNED = tuple(_tidemill(*knobs) for knobs in product(TIDEMILL_UTILISATIONS, TIDEMILL_MINUTES, TIDEMILL_THRESHOLDS))
FAMILIES: dict[str, tuple[Make, ...]] = {
    "keda": tuple(_keda(*knobs) for knobs in product(KEDA_THRESHOLDS, KEDA_MINUTES)),
    "flink": (
        *(_flink(utilisation, *minutes) for utilisation, minutes in product(FLINK_UTILISATIONS, FLINK_MINUTES)),
        lambda: Flink(name="flink as delivered"),
    ),
}


@dataclass(frozen=True)
class Rival:
    """The cheapest setting of a family that serves as well as Tidemill, and Tidemill's answer.

    Attributes:
        result: The result of the setting, or None if no setting serves as well.
        answer: where it is better than Tidemill, the cheapest of Tidemill's settings that serves as well and that it is
            not better than (see `is_better`); None: there is none, or none is needed.
    """

    family: str
    result: Result | None
    answer: Result | None = None


@dataclass(frozen=True)
class Comparison:
    """The comparison of all policies for one shape.

    Attributes:
        own: Tidemill's result.
        others: The results of all other settings.
        rivals: One rival for each family.
        oracle_hours: replica-hours that would do, with as many changes as Tidemill makes, if the load were known.
    """

    shape: Shape
    own: Result
    others: tuple[Result, ...]
    rivals: tuple[Rival, ...]
    oracle_hours: float


def compare(shape: Shape, make: Make = Tidemill) -> Comparison:
    """Run all policies through a shape."""
    own = run(shape, make())
    others: list[Result] = []
    rivals = []
    tuned: list[Result] = []
    for family, makes in FAMILIES.items():
        results = [run(shape, other()) for other in makes]
        others += results
        rival = _cheapest(results, over_seconds=own.over_seconds)
        answer = None
        if rival is not None and is_better(rival, own):
            tuned = tuned or [run(shape, other()) for other in TUNED]
            matching = [setting for setting in tuned if not is_better(rival, setting)]
            answer = _cheapest(matching, over_seconds=own.over_seconds)
        rivals.append(Rival(family, rival, answer))
    return Comparison(shape, own, tuple(others), tuple(rivals), fewest_hours(shape, own.changes))


def is_better(other: Result, own: Result) -> bool:
    """Return whether another result is cheaper by more than 2 %, or has fewer changes."""
    return own.replica_hours > other.replica_hours * EQUAL or own.changes > other.changes


def _cheapest(results: Sequence[Result], *, over_seconds: float) -> Result | None:
    as_good = [result for result in results if result.over_seconds <= over_seconds + POLL_SECONDS]
    return min(as_good, key=lambda result: (result.replica_hours, result.changes), default=None)


@dataclass(frozen=True)
class Total:
    """One setting over all shapes."""

    policy: str
    replica_hours: float
    over_seconds: float
    changes: int
    flaps: int


def totals(comparisons: Sequence[Comparison]) -> tuple[Total, list[Total]]:
    """Return Tidemill over all shapes, and the settings that serve as well in all of them, the cheapest first."""
    own = _total([comparison.own for comparison in comparisons])
    settings = zip(*(comparison.others for comparison in comparisons), strict=True)
    settings_totals = [_total(results) for results in settings]
    allowed = own.over_seconds + POLL_SECONDS * len(comparisons)
    as_good = [total for total in settings_totals if total.over_seconds <= allowed]
    return own, sorted(as_good, key=lambda total: (total.replica_hours, total.changes))


def _total(results: Sequence[Result]) -> Total:
    return Total(
        results[0].policy,
        round(sum(result.replica_hours for result in results), 2),
        sum(result.over_seconds for result in results),
        sum(result.changes for result in results),
        sum(result.flaps for result in results),
    )


def shortfalls(comparison: Comparison) -> Iterator[str]:
    """Return where another policy serves as well and is better, and Tidemill's result if it is tuned, too."""
    own = comparison.own
    for rival in comparison.rivals:
        other = rival.result
        if other is None or not is_better(other, own):
            continue
        tuned = "no setting of Tidemill's does" if rival.answer is None else told(rival.answer)
        yield f"{own.shape}: {told(other)} serves as well as {told(own)}; tuned to it too: {tuned}"


def told(result: Result) -> str:
    """Return a policy with its replica-hours and changes as text."""
    return f"{result.policy} ({result.replica_hours:.2f} h, {result.changes} changes)"
