"""Random records of a pipeline's source topic, with their values in plain Python."""

from __future__ import annotations

import datetime as dt
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from oracle.expressions import moment_of
from oracle.places import put, steps_of, written

Fields = Sequence[Mapping[str, Any]]
"""Fields as in the spec; `ts` is the event time."""

BROKEN: tuple[tuple[bytes, str], ...] = (
    (b"{", "not_json"),
    (b"\xde\xad", "not_json"),
    (b"[1, 2]", "not_an_object"),
    (b'"text"', "not_an_object"),
    (b'{"s": "a"}', "missing_field"),
)

_WRONG: tuple[tuple[dict[str, Any], str], ...] = (
    ({"i": "x"}, "mistyped"),
    ({"b": 3}, "mistyped"),
    ({"f": "1.0"}, "mistyped"),
    ({"big": 2**63}, "out_of_range"),
    ({"s": "a\0b"}, "bad_string"),
    ({"ts": "soon"}, "mistyped"),
    ({"ts": 1_700_000_000}, "out_of_range"),  # seconds instead of milliseconds
    ({"ts": 4_102_444_800_000}, "too_far_in_the_future"),
)


@dataclass(frozen=True)
class Event:
    """One record.

    Attributes:
        time: the event time in epoch milliseconds, or 0 if the record is invalid.
        values: the values by field, None for absent fields. None if the record is invalid.
        reason: the reason of the dead letter if the record is invalid.
    """

    partition: int
    offset: int
    raw: bytes
    time: int = 0
    values: Mapping[str, Any] | None = None
    reason: str = ""


@dataclass
class EventDrawer:
    """Draws records with few keys, equal times, nulls, duplicates, integers at the limits of 64 bits, and faults.

    Attributes:
        rnd: the source of randomness.
        fields: the fields of an event.
        partitions: the number of partitions.
        logs: the records by partition.
    """

    rnd: random.Random
    fields: Fields
    partitions: int
    logs: dict[int, list[Event]] = field(default_factory=dict)

    def draw(self, time: int, partition: int | None = None) -> Event:
        """Draw a valid event with this time, in the given partition or in any."""
        others = [(each["name"], each["type"]) for each in self.fields if each["name"] != "ts"]
        values: dict[str, Any] = {name: self._value(name, kind) for name, kind in others}
        return self._put({**values, "ts": moment_of(time)}, time, self._place(partition))

    def broken(self) -> Event:
        """Draw an invalid record."""
        rnd, partition = self.rnd, self._place(None)
        raw, reason = rnd.choice(BROKEN)
        if rnd.random() < 0.5:
            member, reason = rnd.choice(_WRONG)
            raw = json.dumps(self._placed({"ts": 1_770_000_000_000, **member})).encode()
        return self._keep(Event(partition, self._next(partition), raw, reason=reason))

    def again(self, event: Event) -> Event:
        """Repeat a record. The repetition is another event."""
        return self._keep(Event(event.partition, self._next(event.partition), event.raw, event.time, event.values))

    def take_back(self, event: Event) -> None:
        """Remove the last event of its partition, which must be this event."""
        assert self.logs[event.partition].pop() == event

    def _place(self, partition: int | None) -> int:
        return self.rnd.randrange(self.partitions) if partition is None else partition

    def _next(self, partition: int) -> int:
        return len(self.logs.setdefault(partition, []))

    def _keep(self, event: Event) -> Event:
        self.logs[event.partition].append(event)
        return event

    def _put(self, values: dict[str, Any], time: int, partition: int) -> Event:
        members = self._placed({name: value for name, value in values.items() if value is not None or self._says()})
        if self.rnd.random() < 0.1:
            members["unknown"] = [1, {"a": None}]
        raw = json.dumps(members, ensure_ascii=self._says()).encode()
        plain = {name: value + 0.0 if isinstance(value, float) else value for name, value in values.items()}
        return self._keep(Event(partition, self._next(partition), raw, time, plain))

    def _placed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the members of a record with these values. An absent object may be written as null."""
        members: dict[str, Any] = {}
        for each in self.fields:
            if each["name"] in values:
                value = values[each["name"]]
                own = written(each, value) if isinstance(value, dt.datetime) else None
                put(members, steps_of(each), self._written(value) if own is None else own)
        if self._says() and any(len(steps_of(each)) > 1 for each in self.fields):
            members.setdefault("in", None)
        return members

    def _says(self) -> bool:
        return self.rnd.random() < 0.5

    def _written(self, value: Any) -> Any:
        """Write a time as a string in any zone or as milliseconds, and a whole number with or without a point."""
        if isinstance(value, dt.datetime):
            if self._says():
                return round(value.timestamp() * 1000)
            zone = dt.timezone(dt.timedelta(minutes=self.rnd.choice([0, 60, -330])))
            return value.astimezone(zone).isoformat(timespec="milliseconds")
        if isinstance(value, float) and value == int(value) and abs(value) < 1e15 and self._says():
            return int(value)
        return value

    def _value(self, name: str, kind: str) -> Any:
        rnd = self.rnd
        if rnd.random() < 0.12:
            return None
        if name in _SPECIAL:
            return rnd.choice(_SPECIAL[name])
        match kind:
            case "string":
                return rnd.choice(STRINGS)
            case "integer":
                return rnd.choice([rnd.randint(-5, 9), rnd.randint(-5, 9), rnd.randint(-(10**6), 10**6)])
            case "number":
                return rnd.choice([0.0, -0.0, 1.5, -2.25, round(rnd.uniform(-1000, 1000), 3), float(rnd.randint(0, 5))])
            case "boolean":
                return rnd.random() < 0.5
        return moment_of(1_767_225_600_000 + rnd.randrange(3) * 86_400_000 + rnd.choice([0, 1, 250, 43_200_000]))


_SPECIAL: Mapping[str, Sequence[Any]] = {
    "j": (0, 1, 2, -1),
    "z": (0.0, -0.0, 1.5, -2.25),
    "big": (2**63 - 1, -(2**63), 2**53 + 1, 2**53 + 3, 0, 9_007_199_254_740_995),
}
STRINGS: Sequence[str] = ("a", "b", "c", "", 'Ü,"\n\\N', "null", "a'b", "🌊é", "A", "\\.")
