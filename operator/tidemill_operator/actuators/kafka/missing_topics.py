"""Ask all brokers of a Kafka cluster which topics are missing.

A single broker can have outdated metadata, for example while cut off from the network. A topic is therefore missing
only if every broker reports the topic as missing.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from tidemill_operator.actuators.kafka.python_client import open_admin_client, translate_errors
from tidemill_operator.errors import TidemillError

log = logging.getLogger(__name__)
_UNKNOWN_TOPIC = 3


def find_missing_topics(config: Mapping[str, Any], topics: Collection[str], timeout_seconds: float) -> frozenset[str]:
    """Return the topics that every broker reports as missing.

    If a broker does not answer, no topic is returned. The result leaves out topics if Kafka does not permit the login
    to describe them.

    Args:
        config: client settings in librdkafka's names.
        topics: names of topics.
        timeout_seconds: the timeout of each request.
    """
    doing, brokers = "asking all brokers for topics", str(config["bootstrap.servers"])
    try:
        with open_admin_client(config, timeout_seconds, doing) as client, translate_errors(doing, brokers):
            answers = client._manager.run(_ask_brokers, client._manager, sorted(topics), int(timeout_seconds * 1000))
    except TidemillError as error:
        log.info("%s", error)
        return frozenset()
    nodes = set(answers)
    if not nodes or any({broker.node_id for broker in answer.brokers} - nodes for answer in answers.values()):
        return frozenset()
    missing = [
        {topic.name for topic in answer.topics if topic.error_code == _UNKNOWN_TOPIC} for answer in answers.values()
    ]
    return frozenset(topics).intersection(*missing)


async def _ask_brokers(manager: Any, topics: list[str], timeout_ms: int) -> dict[int, Any]:
    from kafka.protocol.metadata import MetadataRequest

    requested = [MetadataRequest.MetadataRequestTopic(name=name) for name in topics]
    futures = {
        broker.node_id: manager.send(
            MetadataRequest(topics=requested, allow_auto_topic_creation=False),
            node_id=broker.node_id,
            request_timeout_ms=timeout_ms,
        )
        for broker in manager.cluster.brokers()
    }
    return {node: await answer for node, answer in futures.items()}
