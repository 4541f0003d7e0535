"""Tests that the end offsets of a topic are used only if Kafka reports those of all partitions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from demo import runtime
from demo.runtime import DemoError, Ends, all_ends


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_ENDS_PAUSE_SECONDS", 0.0)


def test_all_end_offsets_come_from_one_answer_without_faults() -> None:
    """While a partition has no leader, the offsets of the others are discarded, because they would be outdated."""
    answers: Iterator[Ends] = iter([({0: 5}, ["FENCED_LEADER_EPOCH: of old"]), ({0: 6, 1: 7}, [])])
    assert all_ends(lambda: next(answers), "a.b.events") == {0: 6, 1: 7}


def test_missing_end_offsets_are_an_error_with_the_reason_of_kafka(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_ENDS_SECONDS", 0.0)
    with pytest.raises(DemoError, match=r"Kafka does not report the ends of a\.b\.events: its leader does not answer"):
        all_ends(lambda: ({0: 5}, ["its leader does not answer"]), "a.b.events")
