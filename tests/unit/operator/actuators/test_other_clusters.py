"""What a broker of another Kafka cluster answers about a topic, and what its controller knows."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from tidemill_operator.actuators.kafka import session as sessions
from tidemill_operator.actuators.kafka.clusters import Cluster, Connection
from tidemill_operator.actuators.kafka.session import KafkaSession
from tidemill_operator.errors import Reason, TidemillError


class Outdated(KafkaSession):
    """A broker that does not know a topic for its first answers. The controller knows it."""

    def __init__(self, answers: int) -> None:
        super().__init__("a:9092", {}, 1.0)
        self._answers = answers

    def cluster_id(self) -> str:
        return "other"

    def described(self, topics: Sequence[str]) -> dict[str, Any]:
        self._answers -= 1
        known = SimpleNamespace(partitions=[], topic_id="A")
        return {} if self._answers >= 0 else dict.fromkeys(topics, known)

    def known_to_controller(self, topics: Sequence[str]) -> frozenset[str]:
        return frozenset(topics)


def test_a_topic_that_only_the_controller_knows_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_SETTLE_SECONDS", 0.2)
    cluster = Cluster(Connection("a:9092"), "")
    cluster.session = Outdated(answers=2)
    found = cluster.topic("crm.orders", lambda: "own")
    assert found is not None
    assert found.id == "A"
    cluster.session = Outdated(answers=99)
    with pytest.raises(TidemillError, match=r"topic crm\.orders exists, but a broker") as told:
        cluster.topic("crm.orders", lambda: "own")
    assert told.value.reason == Reason.UNREACHABLE
