"""A plugin of pytest that writes the results of tests with the marker `fault` as a table.

    @pytest.mark.fault("leader-killed", "another leads and repairs; nothing is made twice")
    def test_...(record_property): ...
        record_property("told", 3.2)       # seconds from the fault until it was reported
        record_property("recovered", 1.5)  # seconds from the end of the fault until everything was healthy
        record_property("pods restarted", 0)

A row may have several tests, and holds if all of them pass. The table is written to the file that FAULT_MATRIX names.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

MARKER, REPORTED, RECOVERED = "fault", "told", "recovered"
# Workers of pytest-xdist send properties of a report to the session that prints the table.
_ROW, _EXPECTED = "fault row", "fault expected"
_HEAD = ("Fault", "Expected", "Seen", "Reported after", "Healthy after", "Took")


@dataclass
class Row:
    """The results of the tests of one fault."""

    expected: str
    passed: int = 0
    others: list[str] = field(default_factory=list)
    seconds: float = 0.0
    figures: list[tuple[str, Any]] = field(default_factory=list)

    def add(self, report: pytest.TestReport) -> None:
        """Add a phase of a test: setup, call or teardown."""
        self.seconds += report.duration
        if report.failed:
            self.others.append(f"**{report.nodeid.rsplit('::', 1)[-1]} fails**")
        elif report.skipped:
            reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
            self.others.append(f"skipped: {str(reason).removeprefix('Skipped: ')}")
        elif report.when == "call":
            self.passed += 1
        # Only the last phase also has the properties that fixtures recorded.
        if report.when == "teardown":
            self.figures += [pair for pair in report.user_properties if pair[0] not in (_ROW, _EXPECTED)]

    def cells(self, name: str) -> tuple[str, ...]:
        """Return the cells of the table's row."""
        tests = "1 test" if self.passed == 1 else f"{self.passed} tests"
        seen = [f"holds ({tests})"] if self.passed and not self.others else [*dict.fromkeys(self.others)]
        seen += [f"{what}: {value}" for what, value in self.figures if what not in (REPORTED, RECOVERED)]
        times = (self._worst(REPORTED), self._worst(RECOVERED))
        return (f"`{name}`", self.expected, "; ".join(seen), *times, f"{self.seconds:.0f} s")

    def _worst(self, what: str) -> str:
        seconds = [float(value) for name, value in self.figures if name == what]
        return f"{max(seconds):.1f} s" if seconds else ""


class FaultMatrix:
    """Collects the rows while tests end, and writes the table at the end of the session."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.rows: dict[str, Row] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Add the row of the test to its report, in the process that runs the test."""
        report = yield
        for marker in item.iter_markers(MARKER):
            report.user_properties += [(_ROW, marker.args[0]), (_EXPECTED, marker.args[1])]
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a report to its row, in the process that prints the table."""
        properties = {name: str(value) for name, value in report.user_properties}
        if _ROW in properties:
            self.rows.setdefault(properties[_ROW], Row(properties[_EXPECTED])).add(report)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print and write the table."""
        if not self.rows:
            return
        terminalreporter.section("faults")
        for name, row in self.rows.items():
            _, _, seen, reported, recovered, took = row.cells(name)
            terminalreporter.write_line(f"{name}: {row.expected}")
            terminalreporter.write_line(f"    {seen}" + _times(reported, recovered, took))
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(table([row.cells(name) for name, row in self.rows.items()]))
        terminalreporter.write_line(f"the table is in {self._file}")


def _times(reported: str, recovered: str, took: str) -> str:
    parts = [f"reported after {reported}" if reported else "", f"healthy after {recovered}" if recovered else ""]
    parts.append(f"took {took}")
    return "; " + "; ".join(filter(None, parts))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a table in Markdown."""
    lines = [_HEAD, ("---",) * len(_HEAD), *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |\n" for line in lines
    )
