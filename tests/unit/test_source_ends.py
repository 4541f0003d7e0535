"""What a processor takes for the ends of its partitions: nothing that Kafka did not tell."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from tidemill_processor.source import Source

FENCED = KafkaException(KafkaError(KafkaError.FENCED_LEADER_EPOCH))


def source(*answers: int | KafkaException) -> tuple[Source, Any]:
    """One that has asked, and its client."""
    made, client = Source.__new__(Source), object()
    made.__dict__ |= {"_ends": {}, "_ends_asked_at": 7.0, "_admin": client}
    made.__dict__["_connection"] = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}
    for partition, answer in enumerate(answers):
        future: Future[Any] = Future()
        if isinstance(answer, KafkaException):
            future.set_exception(answer)
        else:
            future.set_result(SimpleNamespace(offset=answer))
        made._ends[partition] = future
    return made, client


@pytest.mark.parametrize("fault", [-1001, FENCED], ids=["no answer", "another leader"])
def test_a_partition_whose_leader_does_not_tell_has_no_end(fault: int | KafkaException) -> None:
    """It must not look read to its end; and the leaders are looked for anew."""
    one, client = source(10, fault)
    assert one.ends() == ({0: 10}, 7.0)
    assert one._admin is not client


def test_no_end_at_all_is_no_answer() -> None:
    one, _ = source(-1001, FENCED)
    assert one.ends() is None


def test_ends_that_are_told_need_no_other_client() -> None:
    one, client = source(10, 0)
    assert one.ends() == ({0: 10, 1: 0}, 7.0)
    assert one._admin is client
