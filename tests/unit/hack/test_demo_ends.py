"""Ends of a topic are taken only if Kafka tells all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from demo import runtime
from demo.runtime import DemoError, Ends, all_ends


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_ENDS_PAUSE_SECONDS", 0.0)


def test_a_leader_that_is_on_its_way_is_waited_for() -> None:
    """What was told of the other partitions meanwhile is of before."""
    answers: Iterator[Ends] = iter([({0: 5}, ["FENCED_LEADER_EPOCH: of old"]), ({0: 6, 1: 7}, [])])
    assert all_ends(lambda: next(answers), "a.b.events") == {0: 6, 1: 7}


def test_what_is_never_told_is_said_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_ENDS_SECONDS", 0.0)
    with pytest.raises(DemoError, match=r"Kafka does not report the ends of a\.b\.events: its leader does not answer"):
        all_ends(lambda: ({0: 5}, ["its leader does not answer"]), "a.b.events")
