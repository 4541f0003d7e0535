"""Tests of topics on other Kafka clusters: answers of a broker and the controller, and the remedies of errors."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from tidemill_operator.actuators.kafka import session as sessions
from tidemill_operator.actuators.kafka.clusters import Cluster, Connection
from tidemill_operator.actuators.kafka.session import KafkaSession
from tidemill_operator.errors import Reason, TidemillError


class Outdated(KafkaSession):
    """A session with a broker whose first answers lack the topic, although the controller knows it."""

    def __init__(self, answers: int) -> None:
        super().__init__("a:9092", {}, 1.0)
        self._answers = answers

    def cluster_id(self) -> str:
        return "other"

    def describe_topics(self, topics: Sequence[str]) -> dict[str, Any]:
        self._answers -= 1
        description = SimpleNamespace(partitions=[], topic_id="A")
        return {} if self._answers >= 0 else dict.fromkeys(topics, description)

    def known_to_controller(self, topics: Sequence[str]) -> frozenset[str]:
        return frozenset(topics)


def test_a_topic_that_only_the_controller_knows_is_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_WAIT_SECONDS", 0.2)
    cluster = Cluster(Connection("a:9092"), "")
    cluster.session = Outdated(answers=2)
    topic_found = cluster.topic("crm.orders", lambda: "own")
    assert topic_found is not None
    assert topic_found.id == "A"
    cluster.session = Outdated(answers=99)
    with pytest.raises(TidemillError, match=r"topic crm\.orders exists, but a broker") as raised_error:
        cluster.topic("crm.orders", lambda: "own")
    assert raised_error.value.reason == Reason.UNREACHABLE


def test_a_client_lives_until_all_its_requests_have_answers() -> None:
    """Pipelines share a client. After a request without an answer, later requests use a new client."""
    session = KafkaSession("127.0.0.1:1", {}, 1.0)
    with session.translate_errors("listing topics"):
        client = weakref.ref(session.admin())
        with (
            pytest.raises(TidemillError, match=r"describing topics: Kafka at 127\.0\.0\.1:1 did not answer within 1 s"),
            session.translate_errors("describing topics"),
        ):
            raise FutureTimeout
        assert session.client is None
        assert client() is not None
    gc.collect()
    assert client() is None


def test_remedies_of_another_cluster_name_port_secret_and_permission() -> None:
    cluster = Cluster(Connection("a:9093,b:9094"), "shop/crm-kafka")

    def raised_error(error: KafkaError | None) -> TidemillError:
        with pytest.raises(TidemillError) as raised, cluster.session.translate_errors("describing topics"):
            raise FutureTimeout if error is None else KafkaException(error)
        return raised.value

    assert raised_error(None).remedy == (
        "check that Kafka runs, and allow the operator to connect to port 9093 and 9094: in Kubernetes, add the port"
        " to the chart's value networkPolicy.egressPorts"
    )
    cluster.session._record_refusal(KafkaError(KafkaError._AUTHENTICATION, "wrong password"))
    assert raised_error(None).remedy == "check the login in the Secret shop/crm-kafka"
    denied = raised_error(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    assert denied.remedy == "allow Describe and Read on the topic to the login in the Secret shop/crm-kafka"
    with cluster.session.translate_errors("describing topics"):
        pass
    assert "check that Kafka runs" in raised_error(None).remedy
