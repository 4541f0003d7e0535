"""Reports the results of the simulation: a table for each shape, a summary, JSON and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sim.compare import Comparison, Total, shortfalls, totals
from sim.run import ALLOWED_LAG, POLL_SECONDS, Result
from sim.svg import draw
from sim.world import STEP_SECONDS, Setup

_COLUMNS: tuple[tuple[str, Callable[[Result], str]], ...] = (
    ("replica-hours", lambda r: f"{r.replica_hours:.2f}"),
    ("mean lag", lambda r: f"{r.mean_lag:,}"),
    ("max lag", lambda r: f"{r.max_lag:,}"),
    ("s over", lambda r: f"{r.over_seconds:,.0f}"),
    ("s to recover", lambda r: f"{r.recover_seconds:,.0f}"),
    ("changes", lambda r: str(r.changes)),
    ("overshoot", lambda r: str(r.overshoot)),
    ("flaps", lambda r: str(r.flaps)),
)
_SHOWN = ("keda 100k 5m", "flink as delivered", "flink 70% 5m 10m")
_CHEAPEST = 5


def print_tables(comparisons: Sequence[Comparison], console: Console) -> None:
    """Print a table for each shape, a summary, and the policies that are better than Tidemill."""
    for comparison in comparisons:
        console.print(_table(comparison))
    console.print(_summary(comparisons))
    console.print(_overall(*totals(comparisons)))
    texts = [text for comparison in comparisons for text in shortfalls(comparison)]
    console.print(
        f"Service is the time with a total lag of more than {ALLOWED_LAG:,.0f} events. Service is equal if this time is"
        f" at most one poll ({POLL_SECONDS:.0f} s) longer than Tidemill's."
    )
    for text in texts:
        console.print(f"Tidemill is not the best for {text}")
    if not texts:
        console.print("At equal service, no policy needs fewer replica-hours or fewer changes than Tidemill.")


def _shown_results(comparison: Comparison) -> list[tuple[str, Result]]:
    """Return the names and results of Tidemill, of some other settings, and of the rivals."""
    rows = [("tidemill", comparison.own)]
    rows += [(other.policy, other) for other in comparison.others if other.policy in _SHOWN]
    for rival in comparison.rivals:
        if rival.result is not None:
            rows.append((f"equal service: {rival.result.policy}", rival.result))
    return rows


def _table(comparison: Comparison) -> Table:
    table = Table("policy", *(name for name, _ in _COLUMNS), title=comparison.shape.name, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, result in _shown_results(comparison):
        table.add_row(name, *(show(result) for _, show in _COLUMNS), style="bold" if name == "tidemill" else None)
    return table


def _summary(comparisons: Sequence[Comparison]) -> Table:
    table = Table(
        "shape",
        "tidemill",
        "cheapest KEDA",
        "cheapest Flink",
        "fewest hours if the load is known",
        title="replica-hours / changes at equal service",
    )
    for comparison in comparisons:
        rivals = [_cell(rival.result) for rival in comparison.rivals]
        table.add_row(comparison.shape.name, _cell(comparison.own), *rivals, f"{comparison.oracle_hours:.2f}")
    table.add_row("all", "", "", "", f"{sum(comparison.oracle_hours for comparison in comparisons):,.1f}")
    return table


def _overall(own: Total, as_good: Sequence[Total]) -> Table:
    table = Table(
        "policy", "replica-hours", "changes", "s over", "flaps", title="settings with equal service over all shapes"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for total in (own, *as_good[:_CHEAPEST]):
        figures = f"{total.replica_hours:,.1f}", str(total.changes), f"{total.over_seconds:,.0f}", str(total.flaps)
        table.add_row(total.policy, *figures, style="bold" if total is own else None)
    return table


def _cell(result: Result | None) -> str:
    if result is None:
        return "no setting serves as well"
    return f"{result.replica_hours:.2f} / {result.changes}  ({result.policy})"


def to_json(comparisons: Sequence[Comparison], *, seed: int) -> str:
    """Return all results without the traces as JSON."""
    own, as_good = totals(comparisons)
    record: dict[str, Any] = {
        "seed": seed,
        "setup": asdict(Setup()) | {"step_seconds": STEP_SECONDS, "poll_seconds": POLL_SECONDS},
        "allowed_lag": ALLOWED_LAG,
        "all_shapes": {"tidemill": asdict(own), "as_good": [asdict(total) for total in as_good]},
        "shapes": [
            {
                "shape": comparison.shape.name,
                "hours": comparison.shape.seconds / 3600,
                "tidemill": comparison.own.summary(),
                "oracle_hours": comparison.oracle_hours,
                "others": [other.summary() for other in comparison.others],
                "equal_service": {
                    rival.family: rival.result.policy if rival.result else None for rival in comparison.rivals
                },
                "tuned_too": {rival.family: rival.answer.summary() for rival in comparison.rivals if rival.answer},
                "shortfalls": list(shortfalls(comparison)),
            }
            for comparison in comparisons
        ],
    }
    return json.dumps(record, indent=1)


def write(comparisons: Sequence[Comparison], folder: Path, *, seed: int) -> list[Path]:
    """Write `sim-scaling.json` and a picture for each shape into a folder, and return the paths."""
    pictures = folder / "sim-scaling"
    pictures.mkdir(parents=True, exist_ok=True)
    written = [folder / "sim-scaling.json"]
    written[0].write_text(to_json(comparisons, seed=seed))
    for comparison in comparisons:
        drawn = [comparison.own, *(other for other in comparison.others if other.policy in _SHOWN)]
        name = "-".join(comparison.shape.name.lower().split())
        path = pictures / f"{name}.svg"
        path.write_text(draw(comparison.shape.name, drawn))
        written.append(path)
    return written
