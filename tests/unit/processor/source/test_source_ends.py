"""What a processor takes for the ends of its partitions: nothing that Kafka did not tell."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from tidemill_processor.source.topic_admin import TopicAdmin

FENCED = KafkaException(KafkaError(KafkaError.FENCED_LEADER_EPOCH))


class Admin:
    """Answers for each partition in turn."""

    def __init__(self, answers: tuple[int | KafkaException, ...]) -> None:
        self._answers = answers

    def list_offsets(self, asked: dict[TopicPartition, Any], **_: Any) -> dict[TopicPartition, Future[Any]]:
        return {place: told(self._answers[place.partition]) for place in asked}


def told(answer: int | KafkaException) -> Future[Any]:
    future: Future[Any] = Future()
    if isinstance(answer, KafkaException):
        future.set_exception(answer)
    else:
        future.set_result(SimpleNamespace(offset=answer))
    return future


def topic(*answers: int | KafkaException) -> tuple[TopicAdmin, Any]:
    """Return a topic whose leaders answer like this, and its client."""
    made, client = TopicAdmin({"bootstrap.servers": "127.0.0.1:1", "log_level": 0}), Admin(answers)
    made.__dict__ |= {"_admin": client}
    return made, client


@pytest.mark.parametrize("fault", [-1001, FENCED], ids=["no answer", "another leader"])
def test_a_partition_whose_leader_does_not_tell_has_no_end(fault: int | KafkaException) -> None:
    """It must not look read to its end; and the leaders are looked for anew."""
    one, client = topic(10, fault)
    assert one.ends({("t", 0): 0, ("t", 1): 1}) == {0: 10}
    assert one._admin is not client


@pytest.mark.parametrize("answers", [(-1001, FENCED), (FENCED, -1001)], ids=["no answer first", "a refusal first"])
def test_no_end_at_all_is_an_error(answers: tuple[int | KafkaException, ...]) -> None:
    one, _ = topic(*answers)
    with pytest.raises(KafkaException):
        one.ends({("t", 0): 0, ("t", 1): 1})


def test_ends_that_are_told_need_no_other_client() -> None:
    one, client = topic(10, 0)
    assert one.ends({("t", 0): 0, ("t", 1): 1}) == {0: 10, 1: 0}
    assert one._admin is client
