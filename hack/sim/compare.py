"""Compares policies at equal service: which policy uses fewer replicas, or changes them less often?

A policy serves as well as another if its time above the allowed lag is at most one poll longer. More replicas give
better service, so other policies are run with many settings, and Tidemill with its defaults. The results are:

- for each shape, another policy's cheapest setting that serves as well as Tidemill. A user who chooses this setting
  must know the load beforehand;
- if this setting is better than Tidemill, whether a setting of Tidemill for this shape is as good;
- the settings that serve as well as Tidemill over all shapes. A user who does not know the load can choose them.
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
# The stabilisation of the HPA in minutes: the HPA's default, Tidemill's default, and three times Tidemill's default.
KEDA_MINUTES = (5, 10, 30)
FLINK_UTILISATIONS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
# Values of metrics.window and scale-down.interval in minutes. The defaults are 15 and 60.
FLINK_MINUTES = tuple(product((1, 5), (10, 30)))
TIDEMILL_UTILISATIONS = (0.6, 0.7, 0.8)
TIDEMILL_MINUTES = (4, 8, 10, 30)
TIDEMILL_THRESHOLDS = (50_000, 100_000)
# Replica-hours are equal if they differ by at most this factor.
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
    """The cheapest setting of another family that serves as well as Tidemill.

    Attributes:
        result: The result of the setting, or None if no setting serves as well.
        answer: If `result` is better than Tidemill's defaults, the cheapest result of another setting of Tidemill that
            serves as well, and that `result` is not better than (see `is_better`). Otherwise None.
    """

    family: str
    result: Result | None
    answer: Result | None = None


@dataclass(frozen=True)
class Comparison:
    """The comparison of all policies for one shape.

    Attributes:
        own: The result of Tidemill with its defaults.
        others: The results of all settings of other families.
        rivals: The rival of each other family.
        oracle_hours: The fewest possible replica-hours with as many changes as Tidemill, if the load were known.
    """

    shape: Shape
    own: Result
    others: tuple[Result, ...]
    rivals: tuple[Rival, ...]
    oracle_hours: float


def compare(shape: Shape, make: Make = Tidemill) -> Comparison:
    """Run all policies on a shape."""
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
    """Return whether another result has fewer changes, or is cheaper by more than 2 %."""
    return own.replica_hours > other.replica_hours * EQUAL or own.changes > other.changes


def _cheapest(results: Sequence[Result], *, over_seconds: float) -> Result | None:
    as_good = [result for result in results if result.over_seconds <= over_seconds + POLL_SECONDS]
    return min(as_good, key=lambda result: (result.replica_hours, result.changes), default=None)


@dataclass(frozen=True)
class Total:
    """The sums of one setting over all shapes."""

    policy: str
    replica_hours: float
    over_seconds: float
    changes: int
    flaps: int


def totals(comparisons: Sequence[Comparison]) -> tuple[Total, list[Total]]:
    """Return Tidemill's sums over all shapes, and those of settings that serve as well, the cheapest first."""
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
    """Yield a text for each rival that is better than Tidemill, with the result of Tidemill's best setting."""
    own = comparison.own
    for rival in comparison.rivals:
        other = rival.result
        if other is None or not is_better(other, own):
            continue
        tuned = "none" if rival.answer is None else describe(rival.answer)
        yield f"{own.shape}: {describe(other)} is better than {describe(own)}; as good with other settings: {tuned}"


def describe(result: Result) -> str:
    """Return a policy's name, replica-hours and changes as text."""
    return f"{result.policy} ({result.replica_hours:.2f} h, {result.changes} changes)"
