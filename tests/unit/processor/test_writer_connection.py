"""Tests of the writer's connection: it reports a Postgres that answers within deadlines, but slowly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tidemill_processor import connection as module
from tidemill_processor.connection import WriterConnection


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], str]:
    """Return a function that runs a statement of this duration, and returns the report just before its answer."""
    now = [100.0]
    connection = WriterConnection.__new__(WriterConnection)

    def answer(_self: Any, seconds: Any, _interval: float, _timeout: float) -> str:
        now[0] += seconds
        return connection.slow_reason

    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(psycopg.Connection, "wait", answer)

    def wait(seconds: float) -> str:
        return connection.wait(seconds)  # type: ignore[arg-type]

    wait.connection = connection  # type: ignore[attr-defined]
    return wait


def test_several_slow_answers_in_a_row_are_reported(waits: Any) -> None:
    """Each answer is within its deadline."""
    assert [waits(4.0) for _ in range(4)] == [
        "",
        "",
        "",
        "answers slowly: waited for 16 s, and is still waiting",
    ]


def test_a_commit_resets_the_waiting_time(waits: Any) -> None:
    for _ in range(10):
        assert waits(4.0) == ""
        waits.connection.end_batch()
    assert waits.connection.slow_reason == ""
