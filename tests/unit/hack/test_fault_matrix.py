"""Tests of the table of faults: passed, failed and skipped rows, and the worst figure of each row."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from fault_matrix import FaultMatrix

ROW = [("fault row", "server-frozen"), ("fault expected", "told | within 30 s")]


def report(
    name: str,
    *figures: tuple[str, Any],
    outcome: Literal["passed", "failed", "skipped"] = "passed",
    why: Any = None,
    when: Literal["setup", "call", "teardown"] = "call",
) -> pytest.TestReport:
    test_report = pytest.TestReport(f"x.py::{name}", ("x.py", 1, name), {}, outcome, why, when, duration=2.0)
    test_report.user_properties = [*ROW, *figures]
    return test_report


def lines(tmp_path: Path, *reports: pytest.TestReport) -> list[str]:
    class Terminal:
        def section(self, _title: str) -> None:
            pass

        def write_line(self, _line: str) -> None:
            pass

    matrix = FaultMatrix(tmp_path / "build" / "faults.md")
    for test_report in reports:
        matrix.pytest_runtest_logreport(test_report)
    matrix.pytest_terminal_summary(Terminal())
    return (tmp_path / "build" / "faults.md").read_text().splitlines()[2:]


def test_a_row_of_several_tests_holds_if_all_tests_pass(tmp_path: Path) -> None:
    figures = ("told", 3.25), ("recovered", 1), ("restarts", 0)
    ends = (report("one", *figures, when="teardown"), report("two", ("told", 9), when="teardown"))
    (line,) = lines(tmp_path, report("one"), report("two"), *ends)
    assert line == ("| `server-frozen` | told \\| within 30 s | holds (2 tests); restarts: 0 | 9.0 s | 1.0 s | 8 s |")


def test_failed_tests_and_reasons_of_skipped_tests_are_named(tmp_path: Path) -> None:
    (line,) = lines(
        tmp_path,
        report("one"),
        report("two[x]", outcome="failed", why="boom"),
        report("three", outcome="skipped", why=("x.py", 1, "Skipped: no cluster"), when="setup"),
    )
    assert "| **two[x] fails**; skipped: no cluster |" in line


def test_tests_without_a_row_are_not_in_the_table(tmp_path: Path) -> None:
    other = report("other")
    other.user_properties = []
    FaultMatrix(tmp_path / "none.md").pytest_runtest_logreport(other)
    assert not (tmp_path / "none.md").exists()
