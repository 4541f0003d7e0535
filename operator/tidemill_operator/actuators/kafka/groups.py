"""Consumer groups: their members, and whether they are rebalancing.

Uses kafka-python: librdkafka ends the whole process if a request to a group's coordinator times out and the broker
answers later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tidemill_operator.actuators.kafka.python_client import connected, told
from tidemill_operator.errors import Reason, TidemillError

_MOVING = frozenset({"PreparingRebalance", "CompletingRebalance", "Assigning", "Reconciling"})


@dataclass(frozen=True)
class Group:
    """A consumer group: its members, and whether it is rebalancing."""

    members: int
    moving: bool


def describe_group(config: Mapping[str, Any], name: str, timeout_seconds: float) -> Group:
    """Return the current state of a consumer group. A group that does not exist has no members.

    Args:
        config: client settings in librdkafka's names.
        name: the group's name.
        timeout_seconds: the timeout of each request.

    Raises:
        TidemillError: Kafka does not answer the request.
    """
    doing = f"describing consumer group {name}"
    with (
        connected(config, timeout_seconds, doing) as client,
        told(doing, str(config["bootstrap.servers"])),
    ):
        found = client.describe_groups([name])[name]
    if found["error"] and found["group_state"] != "Dead":
        raise TidemillError(Reason.UNREACHABLE, f"{doing}: Kafka answers {found['error']}")
    return Group(len(found["members"]), found["group_state"] in _MOVING)
