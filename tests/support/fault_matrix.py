"""The fault matrix of the tests: what tests with the marker `fault` found, as a table, row by row.

    @pytest.mark.fault("leader-killed", "another leads and repairs; nothing is made twice")
    def test_...(record_property): ...
        record_property("told", 3.2)       # seconds from the fault until it was told
        record_property("recovered", 1.5)  # seconds from the fault's end until all was well
        record_property("pods restarted", 0)

A row may have several tests: it holds if all of them pass. Where FAULT_MATRIX names a file, the table is written there.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

MARKER, TOLD, RECOVERED = "fault", "told", "recovered"
# Properties of a report survive the way from a worker to the session that prints.
_ROW, _EXPECTED = "fault row", "fault expected"
_HEAD = ("Fault", "Expected", "Seen", "Reported after", "Healthy after", "Took")


@dataclass
class Row:
    """What the tests of one fault found."""

    expected: str
    passed: int = 0
    others: list[str] = field(default_factory=list)
    seconds: float = 0.0
    figures: list[tuple[str, Any]] = field(default_factory=list)

    def add(self, report: pytest.TestReport) -> None:
        """One phase of one test: its setup, its call or its end."""
        self.seconds += report.duration
        if report.failed:
            self.others.append(f"**{report.nodeid.rsplit('::', 1)[-1]} fails**")
        elif report.skipped:
            reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
            self.others.append(f"skipped: {str(reason).removeprefix('Skipped: ')}")
        elif report.when == "call":
            self.passed += 1
        # The last phase has what fixtures recorded as well.
        if report.when == "teardown":
            self.figures += [pair for pair in report.user_properties if pair[0] not in (_ROW, _EXPECTED)]

    def cells(self, name: str) -> tuple[str, ...]:
        """As a line of the table."""
        tests = "1 test" if self.passed == 1 else f"{self.passed} tests"
        seen = [f"holds ({tests})"] if self.passed and not self.others else [*dict.fromkeys(self.others)]
        seen += [f"{what}: {value}" for what, value in self.figures if what not in (TOLD, RECOVERED)]
        times = (self._worst(TOLD), self._worst(RECOVERED))
        return (f"`{name}`", self.expected, "; ".join(seen), *times, f"{self.seconds:.0f} s")

    def _worst(self, what: str) -> str:
        found = [float(value) for name, value in self.figures if name == what]
        return f"{max(found):.1f} s" if found else ""


class FaultMatrix:
    """A plugin: notes the rows of tests that end, and tells them at the end of the session."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.rows: dict[str, Row] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Where a test runs: its report says of which row it is."""
        report = yield
        for marker in item.iter_markers(MARKER):
            report.user_properties += [(_ROW, marker.args[0]), (_EXPECTED, marker.args[1])]
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Where reports arrive."""
        told = {name: str(value) for name, value in report.user_properties}
        if _ROW in told:
            self.rows.setdefault(told[_ROW], Row(told[_EXPECTED])).add(report)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the table, and write it."""
        if not self.rows:
            return
        terminalreporter.section("faults")
        for name, row in self.rows.items():
            _, _, seen, told, recovered, took = row.cells(name)
            terminalreporter.write_line(f"{name}: {row.expected}")
            terminalreporter.write_line(f"    {seen}" + _times(told, recovered, took))
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(table([row.cells(name) for name, row in self.rows.items()]))
        terminalreporter.write_line(f"the table is in {self._file}")


def _times(told: str, recovered: str, took: str) -> str:
    reported, healthy = f"reported after {told}" if told else "", f"healthy after {recovered}" if recovered else ""
    parts = [reported, healthy, f"took {took}"]
    return "; " + "; ".join(filter(None, parts))


def table(rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [_HEAD, ("---",) * len(_HEAD), *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |\n" for line in lines
    )
