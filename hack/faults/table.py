"""Formats the rows of a run as a table, stores them as JSON, and writes them into a Markdown page."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.checker import Outcome
from faults.play import Observations
from faults.rows import ROWS, Row

HEAD = (
    *("fault", "expected", "seen", "reported after", "nothing counted for", "counts again after", "healthy after that"),
    *("sent", "acknowledged", "counted", "dead letters", "lost", "doubled", "wrong"),
)
_ABOUT = "became dead letters. "
_BEGIN, _END = "<!-- written by make faults: begin -->", "<!-- end -->"


@dataclass(frozen=True)
class Line:
    """The results of one played row.

    Attributes:
        sent, acknowledged, counted, dead: The numbers of events in this row.
        faults: The unmet expectations of the row.
    """

    row: Row
    observed: Observations
    outcome: Outcome
    sent: int
    acknowledged: int
    counted: int
    dead: int
    faults: Sequence[str]

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the table."""
        observed, outcome = self.observed, self.outcome
        reported = (
            "-"
            if not self.row.reports
            else "not yet"
            if observed.reported_after is None
            else _seconds(observed.reported_after)
        )
        return (
            f"`{self.row.name}`",
            self.row.expected,
            _observation(self),
            reported,
            _seconds(observed.still) if observed.still else "-",
            _seconds(observed.moved),
            _seconds(observed.well),
            *(f"{count:,}" for count in (self.sent, self.acknowledged, self.counted, self.dead)),
            *(f"{count:,}" for count in (outcome.lost, outcome.doubled, outcome.wrong)),
        )

    def document(self, about: str) -> Mapping[str, Any]:
        """Return the results as a JSON object."""
        observed, outcome = dataclasses.asdict(self.observed), dataclasses.asdict(self.outcome)
        counts = {"sent": self.sent, "acknowledged": self.acknowledged, "counted": self.counted, "dead": self.dead}
        document = {"fault": self.row.name, "about": about, "cells": self.cells(), "faults": list(self.faults)}
        return {**document, **counts, "seen": observed, "verdict": outcome}


def _observation(line: Line) -> str:
    messages = ", ".join(f"{who}: {line.observed.said[who]}" for who in line.row.reports)
    text = messages or f"{line.observed.counted:,} events counted meanwhile"
    faults = f"**does not hold: {'; '.join(line.faults)}**; " if line.faults else ""
    return (faults + text).replace("|", "/")


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s"


def markdown_row(cells: Sequence[str]) -> str:
    """Return a line of Markdown."""
    return f"| {' | '.join(cells)} |"


def markdown_head() -> str:
    """Return the first lines of the table."""
    return f"{markdown_row(HEAD)}\n|{'---|' * len(HEAD)}"


def describe_machine(now: dt.datetime) -> str:
    """Return the date and the machine of the run."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    where = f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}"
    return f"{now:%Y-%m-%d}, {where}, Python {platform.python_version()}"


def save_line(path: Path, line: Line, *, about: str) -> None:
    """Write the results of a fault into a JSON file, in place of earlier results of the fault."""
    lines = _read(path)
    lines[line.row.name] = line.document(about)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(lines.values()), indent=1, default=str))


def _read(path: Path) -> dict[str, Any]:
    try:
        return {row["fault"]: row for row in json.loads(path.read_text())}
    except FileNotFoundError:
        return {}


def update_page(page: Path, results: Path) -> None:
    """Write the table of all stored results between the marks of a page. Rows of other faults are kept.

    Raises:
        ValueError: The page has no marks.
    """
    before, begin, rest = page.read_text().partition(_BEGIN)
    old_rows, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{page}: there is no `{_BEGIN}` … `{_END}`; add both marks where the table belongs")
    new_results = _read(results)
    cells = {**_page_rows(old_rows), **{name: row["cells"] for name, row in new_results.items()}}
    rows = [cells[name] for name in ROWS if name in cells]
    sent, counted, dead = (
        sum(int(row[HEAD.index(name)].replace(",", "")) for row in rows) for name in ("sent", "counted", "dead letters")
    )
    about = f"{sent:,} events were sent, {counted:,} counted, {dead:,} {_ABOUT}"
    machines = {machine for machine in old_rows.partition(_ABOUT)[2].partition(".\n")[0].split("; ") if machine}
    where = "; ".join(sorted(machines | {row["about"] for row in new_results.values()}))
    table = "\n".join([markdown_head(), *map(markdown_row, rows)])
    page.write_text(f"{before}{_BEGIN}\n\n{about}{where}.\n\n{table}\n\n{_END}{after}")


def _page_rows(page: str) -> dict[str, Sequence[str]]:
    """Return the rows of a page, by fault."""
    lines = [line.strip().strip("|").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    return {cells[0].strip(" `"): [cell.strip() for cell in cells] for cells in lines if len(cells) == len(HEAD)}
