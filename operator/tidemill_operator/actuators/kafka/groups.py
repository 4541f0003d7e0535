"""Consumer groups: who is in them, and whether they are sharing out partitions.

By kafka-python: a request to a group's coordinator that librdkafka gives up waiting for ends the whole process once the
broker is back.
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
    """A consumer group: its members, and whether it is sharing out partitions among them."""

    members: int
    moving: bool


def describe_group(config: Mapping[str, Any], name: str, timeout_seconds: float) -> Group:
    """What a consumer group is like now; one that does not exist has no members.

    Args:
        config: client settings in librdkafka's names.
        name: of the group.
        timeout_seconds: of each request.

    Raises:
        TidemillError: Kafka does not tell.
    """
    doing = f"describing consumer group {name}"
    with (
        connected(config, timeout_seconds, doing) as client,
        told(doing, str(config["bootstrap.servers"])),
    ):
        found = client.describe_groups([name])[name]
    if found["error"] and found["group_state"] != "Dead":
        raise TidemillError(Reason.UNREACHABLE, f"{doing}: Kafka does not tell ({found['error']})")
    return Group(len(found["members"]), found["group_state"] in _MOVING)
