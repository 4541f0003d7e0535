"""Load shapes: the rate of events, their distribution over partitions, and faults."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MINUTE, HOUR = 60.0, 3600.0
PARTITIONS = 12
AMPLE = 1e9


@dataclass(frozen=True)
class Shape:
    """One scenario.

    Attributes:
        rate: The number of events per second, as a function of the time.
        weights: The weights of the partitions.
        database: The number of events per second that Postgres accepts, as a function of the time.
        stuck: The partitions that no replica reads, as a function of the time.
        missing: Whether the figures cannot be read, as a function of the time.
    """

    name: str
    seconds: float
    rate: Callable[[float], float]
    weights: tuple[float, ...] = (1.0,) * PARTITIONS
    database: Callable[[float], float] = lambda _: AMPLE
    stuck: Callable[[float], frozenset[int]] = lambda _: frozenset()
    missing: Callable[[float], bool] = lambda _: False


def _between(first: float, end: float, inside: float, outside: float) -> Callable[[float], float]:
    return lambda t: inside if first <= t < end else outside


def _ramp(t: float) -> float:
    if t < 70 * MINUTE:
        return 5_000 + 85_000 * min(1.0, max(0.0, t - 10 * MINUTE) / HOUR)
    return 5_000 + 85_000 * min(1.0, max(0.0, 160 * MINUTE - t) / HOUR)


def _noise(seed: int, *, spread: float, minutes: float, seconds: float) -> Callable[[float], float]:
    """Return a log-normal factor with mean 1, which changes every five seconds and is correlated over minutes."""
    generator = random.Random(seed)
    keep = math.exp(-5.0 / (minutes * 60))
    values, x = [], 0.0
    for _ in range(int(seconds / 5) + 2):
        x = keep * x + math.sqrt(1 - keep * keep) * generator.gauss(0, spread)
        values.append(math.exp(x - spread * spread / 2))
    return lambda t: values[int(t / 5)]


def _noisy(seed: int) -> Callable[[float], float]:
    factor = _noise(seed, spread=0.25, minutes=2, seconds=2.5 * HOUR)
    return lambda t: 25_000 * factor(t)


def shapes(seed: int = 1) -> list[Shape]:
    """Return all artificial shapes."""
    step = _between(10 * MINUTE, 70 * MINUTE, 30_000, 3_000)
    return [
        Shape("tenfold step", 2.5 * HOUR, step),
        Shape("large tenfold step", 3 * HOUR, _between(10 * MINUTE, 70 * MINUTE, 80_000, 8_000)),
        Shape("ramp", 3.5 * HOUR, _ramp),
        Shape("sine", 4 * HOUR, lambda t: 45_000 - 40_000 * math.cos(2 * math.pi * t / (2 * HOUR))),
        Shape("spikes", 2 * HOUR, lambda t: 60_000 if t % 600 >= 540 else 8_000),
        Shape(
            "stuck partition",
            2.5 * HOUR,
            lambda _: 30_000,
            stuck=lambda t: frozenset({3}) if 30 * MINUTE <= t < 75 * MINUTE else frozenset(),
        ),
        Shape("skewed keys", 2.5 * HOUR, _between(10 * MINUTE, 70 * MINUTE, 40_000, 4_000), (6.0, *(1.0,) * 11)),
        Shape(
            "slow database", 3 * HOUR, lambda _: 40_000, database=_between(30 * MINUTE, 60 * MINUTE, 30_000, 200_000)
        ),
        Shape(
            "missing figures",
            2.5 * HOUR,
            step,
            missing=lambda t: 9 * MINUTE <= t < 12 * MINUTE or 80 * MINUTE <= t < 85 * MINUTE,
        ),
        Shape("noisy hours", 2.5 * HOUR, _noisy(seed)),
    ]


def recorded_shapes(folder: Path, *, peak: float = 80_000.0, skip: float = 0.0, hours: float = 12.0) -> Iterator[Shape]:
    """Yield shapes from recordings of traffic and cloud figures in a copy of the Numenta Anomaly Benchmark.

    A recording has a value for each five minutes. The rate is interpolated linearly between values.

    Args:
        folder: The folder of the benchmark.
        peak: The highest rate of each shape, to which the values are scaled.
        skip: The hours to skip at the beginning of each recording.
        hours: The length of each shape.
    """
    for path in sorted([*folder.glob("**/realTraffic/*.csv"), *folder.glob("**/realAWSCloudwatch/*.csv")]):
        with path.open(newline="") as file:
            values = [max(0.0, float(row["value"])) for row in csv.DictReader(file)]
        values = values[int(skip * 12) : int((skip + hours) * 12) + 1]
        if len(values) > 1 and max(values) > 0:
            scaled = [value / max(values) * peak for value in values]
            yield Shape(f"NAB {path.stem}", (len(scaled) - 1) * 300.0, _line(scaled))


def _line(values: Sequence[float]) -> Callable[[float], float]:
    def at(t: float) -> float:
        index, part = divmod(t / 300.0, 1.0)
        first = values[min(int(index), len(values) - 1)]
        return first + (values[min(int(index) + 1, len(values) - 1)] - first) * part

    return at
