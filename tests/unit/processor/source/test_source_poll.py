"""What a processor makes of one consume call: errors among records, and partitions that are taken away meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from confluent_kafka import KafkaError, TopicPartition

from tidemill_processor.assignment import Assignment
from tidemill_processor.source.consumer import Source
from tidemill_processor.source.seeks import Seeks
from tidemill_processor.source.slots import OneTopic

AWAY, FATAL = KafkaError(KafkaError._ALL_BROKERS_DOWN), KafkaError(KafkaError._FATAL, "fenced")


class Message:
    """A record of partition 0, or an error."""

    def __init__(self, error: KafkaError | None = None) -> None:
        self._error = error

    def partition(self) -> int:
        return 0

    def error(self) -> KafkaError | None:
        return self._error


def source(messages: list[Message], meanwhile: Callable[[Source], None] = lambda _: None) -> Source:
    """One whose next call brings this."""
    made = Source.__new__(Source)

    class Consumer:
        def consume(self, *_: Any) -> list[Message]:
            meanwhile(made)
            return messages

    made.topic, made.assigned, made.generation, made.lost_at = "t", frozenset({0}), 1, None
    made.__dict__ |= {
        "_consumer": Consumer(),
        "_ready": {0},
        "_ends_read": {},
        "_seeks": Seeks(),
        "_staged": False,
        "_several": False,
        "_outdated": False,
    }
    return made


def lose(one: Source) -> None:
    """The group counts it out."""
    one._on_lost(None, [TopicPartition("t", 0)])


def test_records_of_partitions_that_are_lost_meanwhile_come_again() -> None:
    one = source([Message(), Message(AWAY)], lose)
    polled = one.poll(10, 0.0)
    assert (polled.messages, polled.failed, one.assigned) == ([], None, frozenset())


def test_what_ends_the_consumer_is_told_though_partitions_are_lost_with_it() -> None:
    """It is told once only: who misses it never reads again."""
    polled = source([Message(), Message(FATAL)], lose).poll(10, 0.0)
    assert (polled.messages, polled.failed) == ([], FATAL)


def test_what_ends_the_consumer_counts_more_than_other_errors() -> None:
    polled = source([Message(AWAY), Message(FATAL), Message(AWAY)]).poll(10, 0.0)
    assert polled.failed == FATAL


def test_a_topic_that_was_made_anew_is_read_by_another_consumer() -> None:
    """The one of now believes in the former topic's leaders. The first topic that is seen is no other one."""
    renewed, assignment = list[str](), Assignment.__new__(Assignment)
    ids = iter(["a", "a", "b", "b"])
    nothing: Any = SimpleNamespace(answered=lambda _: None, note=lambda _: None, untaken=lambda *_: frozenset())
    assignment._kafka, assignment._coverage, assignment._lookup = nothing, nothing, nothing
    assignment._topic_ids, assignment._several = {}, False
    assignment._source = SimpleNamespace(  # type: ignore[assignment]
        assigned=frozenset({0}),
        describe=lambda: {"t": (next(ids), 1)},
        renew=lambda: renewed.append(assignment._topic_ids["t"]),
        slots=OneTopic("t"),
    )
    for _ in range(4):
        assignment._check_topic(nothing)
    assert (renewed, assignment._ids) == (["a"], {0: "b"})
