"""Benchmark of all detectors on the Numenta Anomaly Benchmark (NAB), with its standard profile.

NAB_DIR is the folder with the series. Each value is a window, and the functions of `judge` process it like a closed
window. There are three scores:

- as it is: with the default threshold and cooldown;
- best: with the best threshold over all series, and the default cooldown;
- NAB's way: with the best threshold, and without a cooldown. Each window at or above the threshold is an alarm. NAB
  computes its published scores like this.

The scoring is checked first: a detector that never fires has the score 0, a perfect detector has 100.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nab.scoring import Result, probation, score_at, score_best
from nab.series import Series, load
from tidemill_contract.resource.kinds.detectors import DETECTORS, DetectorSpec
from tidemill_processor.detect.detectors import COOLDOWN_WINDOWS, State, decide, observe

TARGET_DEFAULT = 55.0
TARGET_OTHERS = 39.6
"""Score that the authors of NAB publish for their Windowed Gaussian, on all 58 series."""
SPECIALISED = {"mad": "it is for steady noise with outliers, and NAB's series have bursts"}
RANDOM_SEEDS = 5
_STEPS = 8


@dataclass(frozen=True)
class Figures:
    """The scores of a detector."""

    detector: str
    as_it_is: Result
    best: Result
    nab_way: Result
    microseconds: float
    most_state_bytes: int

    @property
    def on_target(self) -> bool:
        """Whether the detector meets its target.

        The target of `auto` is about its default threshold, the target of others about the best threshold.
        """
        if self.detector == "auto":
            return self.as_it_is.score > TARGET_DEFAULT
        return self.best.score > TARGET_OTHERS or self.detector in SPECIALISED


def measure(kind: str, corpus: list[Series]) -> Figures:
    """Run a detector over all series, each with a separate state."""
    spec = DETECTORS.make(type=kind)
    verdicts, readings, largest = [], [], 0
    seconds = 0.0
    for series in corpus:
        begun = time.process_time()
        fired, scores, state = _judged(spec, series)
        seconds += time.process_time() - begun
        largest = max(largest, len(json.dumps(state)))
        verdicts.append((series, fired))
        readings.append((series, scores))
    default = spec.effective_threshold
    if any(
        reported(scores, default, spec.warmup) != fired
        for (_, fired), (_, scores) in zip(verdicts, readings, strict=True)
    ):
        raise AssertionError(f"{kind}: the cooldown of the benchmark differs from that of the processor")
    nab_way = score_best(readings)
    tried = [default * 2 ** (step / 4) for step in range(-_STEPS, _STEPS + 1)]
    best = max((_with_cooldown(readings, limit, spec.warmup) for limit in tried), key=lambda result: result.score)
    total = sum(len(series.values) for series in corpus)
    as_it_is = score_at([(series, [float(f) for f in fired]) for series, fired in verdicts], 1.0)
    return Figures(kind, as_it_is, best, nab_way, seconds / total * 1e6, largest)


def _judged(spec: DetectorSpec, series: Series) -> tuple[list[bool], list[float], State]:
    """Return whether `judge` reports each value, the score of each value (0 if it has none), and the last state."""
    state: State = {}
    fired, scores = [], []
    for at_ms, value in zip(series.times_ms, series.values, strict=True):
        reading, following = observe(spec, state, at_ms, value)
        verdict, state = decide(spec, state, following, reading, at_ms, value)
        fired.append(verdict is not None)
        scores.append(0.0 if reading is None else reading.score)
    return fired, scores, state


def reported(scores: Sequence[float], limit: float, warmup: int) -> list[bool]:
    """Return which values are reported at a threshold.

    The result is the same as that of `judge`, without another run of the detector over the series.
    """
    fired, last = [], -COOLDOWN_WINDOWS - 1
    for row, score in enumerate(scores):
        fires = row >= warmup and score >= limit and row - last > COOLDOWN_WINDOWS
        last = row if fires else last
        fired.append(fires)
    return fired


def _with_cooldown(readings: list[tuple[Series, list[float]]], limit: float, warmup: int) -> Result:
    result = score_at([(s, [float(f) for f in reported(scores, limit, warmup)]) for s, scores in readings], 1.0)
    return Result(limit, result.score, result.detected, result.windows, result.alarms, result.false_alarms)


def check_scoring(corpus: list[Series]) -> dict[str, float]:
    """Return the scores of trivial detectors: null, perfect and random.

    Raises:
        AssertionError: The score of null is not 0, or that of perfect is not 100.
    """
    detectors: dict[str, Callable[[Series], list[float]]] = {
        "null": lambda series: [0.5] * len(series.values),
        "perfect": lambda series: [float(row in {w[0] for w in series.windows}) for row in range(len(series.values))],
    }
    scores = {name: score_best([(series, of(series)) for series in corpus]).score for name, of in detectors.items()}
    if abs(scores["null"]) > 1e-9 or abs(scores["perfect"] - 100) > 1e-9:
        raise AssertionError(f"the scoring is wrong: {scores}")
    seeds = []
    for seed in range(RANDOM_SEEDS):
        generator = random.Random(seed)
        seeds.append(score_best([(series, [generator.random() for _ in series.values]) for series in corpus]).score)
    return {**scores, "random": statistics.mean(seeds), "random, least": min(seeds), "random, most": max(seeds)}


def table(figures: list[Figures], rows: int) -> Table:
    """Return the figures as a table."""
    table = Table(title="Numenta Anomaly Benchmark, standard profile", title_justify="left")
    for name in (
        "detector",
        "as it is",
        "found",
        "false alarms",
        "per 1,000",
        "best",
        "at",
        "NAB's way",
        "µs",
        "state B",
    ):
        table.add_column(name, justify="left" if name == "detector" else "right")
    for f in figures:
        colour = "" if f.on_target else "[red]"
        table.add_row(
            f.detector, f"{colour}{f.as_it_is.score:.1f}", f"{f.as_it_is.detected}/{f.as_it_is.windows}",
            str(f.as_it_is.false_alarms), f"{1000 * f.as_it_is.false_alarms / rows:.2f}", f"{f.best.score:.1f}",
            f"{f.best.threshold:.2f}", f"{f.nab_way.score:.1f}", f"{f.microseconds:.0f}", str(f.most_state_bytes),
        )  # fmt: skip
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", choices=DETECTORS.by_name, action="append", help="only this detector; may be repeated"
    )
    parser.add_argument("--output", type=Path, default=Path("build/bench-nab.json"))
    options = parser.parse_args()
    folder = os.environ.get("NAB_DIR")
    if not folder:
        print("NAB_DIR is not set: name a folder with the benchmark's series and windows.json", file=sys.stderr)
        return 2
    try:
        corpus = load(Path(folder))
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    console = Console(width=120)
    rows = sum(len(series.values) for series in corpus)
    scored = sum(len(series.values) - probation(len(series.values)) for series in corpus)
    windows = sum(len(series.windows) for series in corpus)
    console.print(f"{len(corpus)} series, {rows:,} values ({scored:,} scored), {windows} windows", highlight=False)
    scores = check_scoring(corpus)
    console.print(
        f"null {scores['null']:.1f}, perfect {scores['perfect']:.1f}, random {scores['random']:.1f}"
        f" ({scores['random, least']:.1f} to {scores['random, most']:.1f}; 11.0 is published for all 58 series)",
        highlight=False,
    )
    kinds = options.only or list(DETECTORS.by_name)
    with ProcessPoolExecutor(min(len(kinds), os.cpu_count() or 1)) as pool:
        figures = list(pool.map(measure, kinds, [corpus] * len(kinds)))
    console.print(table(figures, scored))
    for kind, why in SPECIALISED.items():
        if kind in kinds:
            console.print(f"{kind} is specialised: {why}.", highlight=False)
    met = all(f.on_target for f in figures)
    goal = f"auto above {TARGET_DEFAULT:g} as it is, others above {TARGET_OTHERS} at their best or specialised"
    console.print(f"[green]Target met[/]: {goal}" if met else f"[bold red]UNDER TARGET[/]: {goal}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    rows_of_figures = [{**asdict(f), "on_target": f.on_target} for f in figures]
    options.output.write_text(json.dumps({"known": scores, "windows": windows, "detectors": rows_of_figures}, indent=1))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
