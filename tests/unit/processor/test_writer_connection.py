"""What a processor's connection tells of a Postgres that answers in time, but slowly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tidemill_processor import connection as module
from tidemill_processor.connection import WriterConnection


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], str]:
    """Has a statement take so long; what was told just before its answer."""
    now = [100.0]
    connection = WriterConnection.__new__(WriterConnection)

    def answer(_self: Any, seconds: Any, _interval: float, _timeout: float) -> str:
        now[0] += seconds
        return connection.slow

    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(psycopg.Connection, "wait", answer)

    def wait(seconds: float) -> str:
        return connection.wait(seconds)  # type: ignore[arg-type]

    wait.connection = connection  # type: ignore[attr-defined]
    return wait


def test_many_slow_answers_are_told_before_the_last_one(waits: Any) -> None:
    """Each is within its own deadline, and yet nothing gets done."""
    assert [waits(4.0) for _ in range(4)] == [
        "",
        "",
        "",
        "answers slowly: waited for 16 s, and is still waiting",
    ]


def test_what_is_done_is_not_waited_for(waits: Any) -> None:
    for _ in range(10):
        assert waits(4.0) == ""
        waits.connection.done()
    assert waits.connection.slow == ""
