"""Tests of `tidemill status`: it names the failing dependencies of a process."""

from __future__ import annotations

from typing import Any

from tidemill_operator.cli.status import _reasons, _text

HEALTH: dict[str, Any] = {
    "status": "unhealthy",
    "dependencies": {
        "kafka": {"status": "up", "required": True, "detail": "a note"},
        "redis": {"status": "down", "required": False, "detail": "no answer"},
        "lookup plans": {"status": "down", "required": True, "detail": "cannot be read"},
        "postgres": {"status": "down", "required": True},
    },
}


def test_failing_dependencies_with_a_detail_are_listed_required_first() -> None:
    assert list(_reasons(HEALTH).items()) == [("lookup plans", "cannot be read"), ("redis", "no answer")]
    assert _reasons({}) == {}


def test_the_reasons_are_printed_below_their_process() -> None:
    process = {"pid": 7, "port": 80, "ready": False, "health": "unhealthy", "reasons": _reasons(HEALTH)}
    state = {
        "running": True,
        "pid": 1,
        "addresses": {},
        "pipelines": {},
        "servers": {},
        "workloads": {"a.p-0": process},
    }
    *_, row, first, second = _text(state).splitlines()
    assert row.startswith("a.p-0")
    assert row.endswith("unhealthy")
    assert (first, second) == ("  lookup plans: cannot be read", "  redis: no answer")
