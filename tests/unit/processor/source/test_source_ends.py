"""Tests of the ends of partitions: only ends that Kafka reported are used."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from tidemill_processor.source.topic_admin import TopicAdmin

FENCED = KafkaException(KafkaError(KafkaError.FENCED_LEADER_EPOCH))


class Admin:
    """An admin client with one answer for each partition."""

    def __init__(self, answers: tuple[int | KafkaException, ...]) -> None:
        self._answers = answers

    def list_offsets(self, asked: dict[TopicPartition, Any], **_: Any) -> dict[TopicPartition, Future[Any]]:
        return {place: future_of(self._answers[place.partition]) for place in asked}


def future_of(answer: int | KafkaException) -> Future[Any]:
    future: Future[Any] = Future()
    if isinstance(answer, KafkaException):
        future.set_exception(answer)
    else:
        future.set_result(SimpleNamespace(offset=answer))
    return future


def topic(*answers: int | KafkaException) -> tuple[TopicAdmin, Any]:
    """Return a topic whose leaders give these answers, and its client."""
    topic_admin, client = TopicAdmin({"bootstrap.servers": "127.0.0.1:1", "log_level": 0}), Admin(answers)
    topic_admin.__dict__ |= {"_admin": client}
    return topic_admin, client


@pytest.mark.parametrize("fault", [-1001, FENCED], ids=["no answer", "another leader"])
def test_a_partition_whose_leader_does_not_answer_has_no_end(fault: int | KafkaException) -> None:
    """The partition must not count as read to its end. A new client looks up the leaders again."""
    topic_admin, client = topic(10, fault)
    assert topic_admin.end_offsets({("t", 0): 0, ("t", 1): 1}) == {0: 10}
    assert topic_admin._admin is not client


@pytest.mark.parametrize("answers", [(-1001, FENCED), (FENCED, -1001)], ids=["no answer first", "a refusal first"])
def test_an_error_is_raised_if_no_partition_has_an_end(answers: tuple[int | KafkaException, ...]) -> None:
    topic_admin, _ = topic(*answers)
    with pytest.raises(KafkaException):
        topic_admin.end_offsets({("t", 0): 0, ("t", 1): 1})


def test_the_client_is_kept_if_all_leaders_answer() -> None:
    topic_admin, client = topic(10, 0)
    assert topic_admin.end_offsets({("t", 0): 0, ("t", 1): 1}) == {0: 10, 1: 0}
    assert topic_admin._admin is client
