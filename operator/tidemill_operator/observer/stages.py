"""Read the lag of Python stages, and the reasons why stages wait, from the stages' consumer groups."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tidemill_contract import names
from tidemill_contract.stage_records import STAGE_RUNNING
from tidemill_operator.actuators.kafka.groups import CommittedOffset, committed_offsets
from tidemill_operator.actuators.kafka.offsets import EARLIEST, LATEST, OffsetReader, PartitionId
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.keys import Key

_SECONDS = 3.0


def consumed_topics(key: Key, topics: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return the topic read by processors, and the topic read by the Python stage.

    Without a stage, the second topic is empty.
    """
    source, stage = topics[0]["name"], names.topic(key.namespace, key.name, "stage")
    return (stage, source) if any(topic["name"] == stage for topic in topics) else (source, "")


@dataclass(frozen=True)
class StageProgress:
    """The lag of a stage by partition. `wait_reason` is the reason why the stage waits, or empty."""

    lag: Mapping[int, int] = field(default_factory=dict)
    positions: Mapping[int, int] = field(default_factory=dict)
    ages: Mapping[int, float] = field(default_factory=dict)
    wait_reason: str = ""
    fault: str = ""

    @property
    def error(self) -> TidemillError | None:
        """Return an error if the stage waits, or else None."""
        if not self.wait_reason:
            return None
        remedy = "correct the cause; the stage then continues by itself, and no event is lost"
        return TidemillError(Reason.STAGE_WAITS, f"the Python stage waits: {self.wait_reason}", remedy)


class StageReader:
    """Reads the stages' positions. The class is not thread-safe."""

    def __init__(self, kafka: OffsetReader, *, now: Callable[[], float] = time.time) -> None:
        self._kafka, self._now = kafka, now
        self._arrived: dict[PartitionId, tuple[int, int, float | None]] = {}

    def read_progress(
        self, wanted: Mapping[Key, str], partitions: Mapping[Key, Sequence[int]]
    ) -> dict[Key, StageProgress]:
        """Return the stages' lag."""
        if not wanted:
            return {}
        groups = [_group(key, reader) for key in wanted for reader in ("stage", "stage-state")]
        try:
            committed = committed_offsets(self._kafka.config, groups, _SECONDS)
        except TidemillError as error:
            return {key: StageProgress(fault=str(error)) for key in wanted}
        places = [(topic, number) for key, topic in wanted.items() for number in partitions.get(key, ())]
        # A partition without a position is read from its first record.
        unread = [
            (topic, number)
            for key, topic in wanted.items()
            for number in partitions.get(key, ())
            if (topic, number) not in committed.get(_group(key, "stage"), {})
        ]
        starts, ends = self._kafka.offsets(unread, EARLIEST), self._kafka.offsets(places, LATEST)
        faults = {**starts.faults, **ends.faults}
        progress: dict[Key, StageProgress] = {}
        for key, topic in wanted.items():
            own_places = [(topic, number) for number in partitions.get(key, ())]
            fault = next((faults[place] for place in own_places if place in faults), "")
            wait_reason = _wait_reason(committed.get(_group(key, "stage-state"), {}))
            if fault:
                progress[key] = StageProgress(
                    wait_reason=wait_reason, fault=f"Kafka does not report the offsets of topic {topic} ({fault})"
                )
                continue
            offsets = committed.get(_group(key, "stage"), {})
            at = {place: offsets[place].offset if place in offsets else starts.at[place] for place in own_places}
            progress[key] = self._stage_progress(at, {place: ends.at[place] for place in own_places}, wait_reason)
        return progress

    def _stage_progress(
        self, positions: Mapping[PartitionId, int], ends: Mapping[PartitionId, int], wait_reason: str
    ) -> StageProgress:
        behind = {place: at for place, at in positions.items() if ends[place] > at}
        requested = {place: at for place, at in behind.items() if self._arrived.get(place, ())[:2] != (at, ends[place])}
        for place, moment in (self._kafka.arrival_times(requested) if requested else {}).items():
            arrived = None if moment is None else moment / 1000
            self._arrived[place] = (requested[place], ends[place], arrived)
        lag, ages = {place[1]: 0 for place in positions}, {}
        for place, at in behind.items():
            arrival = self._arrived.get(place)
            if arrival is not None and arrival[:2] == (at, ends[place]) and arrival[2] is None:
                continue  # the unread records are only transaction markers, which are not events
            lag[place[1]] = ends[place] - at
            if arrival is not None and arrival[0] == at and arrival[2] is not None:
                ages[place[1]] = max(0.0, self._now() - arrival[2])
        return StageProgress(lag, {place[1]: at for place, at in positions.items()}, ages, wait_reason)


def _group(key: Key, reader: str) -> str:
    return names.consumer_group(key.namespace, key.name, reader)


def _wait_reason(offsets: Mapping[PartitionId, CommittedOffset]) -> str:
    return next((at.metadata for at in offsets.values() if at.metadata != STAGE_RUNNING), "")
