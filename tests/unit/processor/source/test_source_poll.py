"""Tests of polling: errors among records, and partitions that are lost during the call."""

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
    """Return a source whose next call returns these messages, and runs `meanwhile` during the call."""
    polling = Source.__new__(Source)

    class Consumer:
        def consume(self, *_: Any) -> list[Message]:
            meanwhile(polling)
            return messages

    polling.topic, polling.assigned, polling.generation, polling.lost_at = "t", frozenset({0}), 1, None
    polling.__dict__ |= {
        "_consumer": Consumer(),
        "_ready": {0},
        "_ends_read": {},
        "_seeks": Seeks(),
        "_staged": False,
        "_multi_topic": False,
        "_connection_changed": False,
    }
    return polling


def lose(polling: Source) -> None:
    """Report that the group has excluded the member."""
    polling._on_lost(None, [TopicPartition("t", 0)])


def test_records_of_partitions_that_are_lost_during_the_call_are_dropped() -> None:
    polling = source([Message(), Message(AWAY)], lose)
    polled = polling.poll(10, 0.0)
    assert (polled.messages, polled.error, polling.assigned) == ([], None, frozenset())


def test_a_fatal_error_is_reported_although_partitions_are_lost() -> None:
    """Kafka's client reports a fatal error only once."""
    polled = source([Message(), Message(FATAL)], lose).poll(10, 0.0)
    assert (polled.messages, polled.error) == ([], FATAL)


def test_a_fatal_error_takes_precedence_over_other_errors() -> None:
    polled = source([Message(AWAY), Message(FATAL), Message(AWAY)]).poll(10, 0.0)
    assert polled.error == FATAL


def test_a_topic_that_was_created_again_is_read_by_a_new_consumer() -> None:
    """The old consumer would use the leaders of the deleted topic. The first topic needs no new consumer."""
    renewed, assignment = list[str](), Assignment.__new__(Assignment)
    ids = iter(["a", "a", "b", "b"])
    nothing: Any = SimpleNamespace(
        record_answer=lambda _: None, update=lambda _: None, unread_partitions=lambda *_: frozenset()
    )
    assignment._kafka, assignment._rejoiner, assignment._position_store = nothing, nothing, nothing
    assignment._topic_ids, assignment._multi_topic = {}, False
    assignment._source = SimpleNamespace(  # type: ignore[assignment]
        assigned=frozenset({0}),
        describe=lambda: {"t": (next(ids), 1)},
        replace_consumer=lambda: renewed.append(assignment._topic_ids["t"]),
        slots=OneTopic("t"),
    )
    for _ in range(4):
        assignment._check_topic(nothing)
    assert (renewed, assignment._slot_topic_ids) == (["a"], {0: "b"})
