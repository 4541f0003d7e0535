"""Read the members and offsets of consumer groups.

The requests use kafka-python, because librdkafka can crash the process after a slow answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tidemill_operator.actuators.kafka.python_client import open_admin_client, translate_errors
from tidemill_operator.errors import Reason, TidemillError

_REBALANCING_STATES = frozenset({"PreparingRebalance", "CompletingRebalance", "Assigning", "Reconciling"})


@dataclass(frozen=True)
class Group:
    """The number of members of a consumer group, and whether the group is rebalancing."""

    members: int
    rebalancing: bool


def describe_group(config: Mapping[str, Any], name: str, timeout_seconds: float) -> Group:
    """Return the state of a consumer group. A group that does not exist has no members.

    Raises:
        TidemillError: Kafka does not answer the request.
    """
    doing = f"describing consumer group {name}"
    with (
        open_admin_client(config, timeout_seconds, doing) as client,
        translate_errors(doing, str(config["bootstrap.servers"])),
    ):
        description = client.describe_groups([name])[name]
    if description["error"] and description["group_state"] != "Dead":
        raise TidemillError(Reason.UNREACHABLE, f"{doing}: Kafka answers {description['error']}")
    return Group(len(description["members"]), description["group_state"] in _REBALANCING_STATES)


@dataclass(frozen=True)
class CommittedOffset:
    """A committed offset of a consumer group, with the metadata text of the commit."""

    offset: int
    metadata: str


def committed_offsets(
    config: Mapping[str, Any], groups: Sequence[str], timeout_seconds: float
) -> dict[str, dict[tuple[str, int], CommittedOffset]]:
    """Return the committed offsets of consumer groups, by topic and partition.

    Raises:
        TidemillError: Kafka does not answer the request.
    """
    doing = f"reading offsets of consumer groups {', '.join(groups[:3])}{' …' if len(groups) > 3 else ''}"
    with (
        open_admin_client(config, timeout_seconds, doing) as client,
        translate_errors(doing, str(config["bootstrap.servers"])),
    ):
        committed = client.list_group_offsets(list(groups))
    return {
        group: {
            # librdkafka ends the metadata text with a NUL.
            (partition.topic, partition.partition): CommittedOffset(commit.offset, (commit.metadata or "").rstrip("\0"))
            for partition, commit in offsets.items()
            if commit.offset >= 0
        }
        for group, offsets in committed.items()
    }
