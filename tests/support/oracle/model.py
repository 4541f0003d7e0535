"""A naive model of the platform. It keeps all events of each window in lists, and decides about them one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from oracle.cells import columns_of
from oracle.events import Event
from oracle.expressions import compiled
from oracle.windows import Clock, clock_of, panes_of, parse_ms, size_of

NO_CUT = -(2**63)


@dataclass(frozen=True)
class Entry:
    """An event that is counted.

    Attributes:
        event: the event.
        values: its values by field and derive.
        cut: windows that end at or before this time do not count the event.
        layout: the version's layout of columns when the event arrived.
    """

    event: Event
    values: Mapping[str, Any]
    cut: int
    layout: int

    @property
    def order(self) -> tuple[int, int, int]:
        """The sort key: event time, partition, offset."""
        return self.event.time, self.event.partition, self.event.offset


@dataclass
class Session:
    """A session of a group, with its events and its bounds."""

    group: tuple[Any, ...]
    start: int
    end: int
    entries: list[Entry]

    def meets(self, other: Session) -> bool:
        """Return True if the two sessions overlap and have the same group."""
        return self.group == other.group and self.start < other.end and other.start < self.end

    def __add__(self, other: Session) -> Session:
        start, end = min(self.start, other.start), max(self.end, other.end)
        return Session(self.group, start, end, self.entries + other.entries)


@dataclass
class Version:
    """One version of an aggregation.

    Attributes:
        spec: the aggregation's spec for the next event.
        number: the number of the version.
        closed: windows that end at or before this time are closed, epoch milliseconds.
        entries, sessions: the counted events, for fixed windows and for sessions.
        layout: the current layout of columns. It counts up when metrics need new columns.
        column_layouts: the first layout that has a column, by column.
        late: the number of late events by their treatment.
    """

    spec: Mapping[str, Any]
    number: int
    closed: int | None = None
    entries: list[Entry] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    layout: int = 0
    column_layouts: dict[str, int] = field(default_factory=dict)
    late: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        """The name of the aggregation."""
        return str(self.spec["name"])

    @property
    def groups(self) -> list[str]:
        """The columns of groups."""
        return list(self.spec.get("groupBy", ()))

    @property
    def has_sessions(self) -> bool:
        """True if the windows are sessions."""
        return bool(self.spec["window"]["type"] == "session")

    @cached_property
    def longest(self) -> int:
        """The maximal length of a session, or the length of a window, in milliseconds."""
        return size_of(self.spec["window"])

    @cached_property
    def clock(self) -> Clock:
        """The starts of windows. For sessions, the steps in which they close."""
        return clock_of(self.spec["window"])

    @cached_property
    def panes(self) -> int:
        """The number of windows that count an event."""
        return 1 if self.has_sessions else panes_of(self.spec["window"])

    @cached_property
    def gap(self) -> int:
        """The gap of sessions in milliseconds."""
        return parse_ms(self.spec["window"]["gap"])

    @property
    def shut(self) -> int:
        """Windows that end at or before this time accept no more events."""
        if self.closed is None:
            return NO_CUT
        reopens = self.spec.get("latePolicy") == "reopen"
        return self.closed - (self.retention if reopens else 0)

    @property
    def retention(self) -> int:
        """The retention in milliseconds, counted back from `closed`."""
        return parse_ms(self.spec.get("retention", "90d"))

    def lateness(self, event: Event) -> str:
        """Return the reason of a late event's dead letter."""
        return "too_old" if event.time < (self.closed or 0) - self.retention else "late"

    def end_of(self, time: int) -> int:
        """Return the end of the first window with this time, or of a session with only an event of this time."""
        if self.has_sessions:
            return min(time + self.gap, (time // self.longest + 1) * self.longest)
        return self.clock.shift(self.clock.floor(time), 1)

    def group_of(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the group of an event."""
        return tuple(values[name] for name in self.groups)

    def starts(self, entry: Entry) -> list[int]:
        """Return the starts of the windows that count an event."""
        newest = self.clock.floor(entry.event.time)
        starts = [self.clock.shift(newest, -back) for back in range(self.panes)]
        return [start for start in reversed(starts) if self.clock.shift(start, self.panes) > entry.cut]

    def close(self, watermark: int | None) -> None:
        """Close windows that end at or before the watermark less grace."""
        if watermark is not None:
            grace = parse_ms(self.spec["window"].get("grace", "0s"))
            until = self.clock.floor(watermark - grace)
            self.closed = until if self.closed is None else max(self.closed, until)

    def add_columns(self) -> None:
        """Begin a new layout if the metrics need columns that the version does not have."""
        needed = {column for metric in self.spec["metrics"] for column in columns_of(metric)}
        if new := needed - self.column_layouts.keys():
            self.layout += bool(self.column_layouts)
            self.column_layouts |= dict.fromkeys(new, self.layout)


class Model:
    """The model of one pipeline.

    Attributes:
        versions: the current version of each aggregation, by name.
        dead: dead letters, as partition, offset, aggregation and reason.
        seen: all events.
        filtered: the number of events that the filter dropped.
        times: the event times of valid events, by partition.
        types: the types of fields and derives, by name.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.versions: dict[str, Version] = {}
        self.dead: set[tuple[int, int, str, str]] = set()
        self.seen: list[Event] = []
        self.filtered = 0
        self.times: dict[int, list[int]] = {p: [] for p in range(spec["source"]["topic"]["partitions"])}
        self.types: dict[str, str] = {}
        self.apply(spec)

    def apply(self, spec: Mapping[str, Any]) -> None:
        """Apply a spec, from the next event on."""
        self.spec = spec
        self._disorder = parse_ms(spec["source"]["eventTime"]["maxDisorder"])
        self.types = {item["name"]: item["type"] for item in spec["source"]["fields"]}
        transform = spec.get("transform", {})
        self._derives = []
        for derive in transform.get("derive", ()):
            kind, compute = compiled(derive["expression"], self.types)
            self.types[derive["name"]] = kind
            self._derives.append((derive["name"], compute))
        where = transform.get("filter")
        self._passes = compiled(where, self.types)[1] if where else None
        for aggregation in spec["aggregations"]:
            current = self.versions.get(aggregation["name"])
            if current is None or self._shape(current.spec) != self._shape(aggregation):
                self.versions[aggregation["name"]] = Version(aggregation, 1 if current is None else current.number + 1)
            else:
                current.spec = aggregation
            self.versions[aggregation["name"]].add_columns()
        self.settle()

    def _shape(self, aggregation: Mapping[str, Any]) -> str:
        window = {name: value for name, value in aggregation["window"].items() if name != "grace"}
        return repr((aggregation.get("groupBy"), sorted(window.items())))

    @property
    def watermark(self) -> int | None:
        """The watermark, or None while a partition has fewer than three valid events."""
        if any(len(times) < 3 for times in self.times.values()):
            return None
        return min(max(times) for times in self.times.values()) - self._disorder

    def settle(self) -> None:
        """Close windows of every version up to the watermark."""
        for version in self.versions.values():
            version.close(self.watermark)

    def valued(self, event: Event) -> dict[str, Any] | None:
        """Return the fields and derives of a valid event, or None if the filter drops it."""
        assert event.values is not None
        values = dict(event.values)
        for name, compute in self._derives:
            values[name] = compute(values)
        return values if self._passes is None or self._passes(values) is True else None

    def take(self, events: Sequence[Event]) -> None:
        """Count events. No window may close between their arrivals."""
        rows = []
        for event in events:
            self.seen.append(event)
            if event.values is None:
                self.dead.add((event.partition, event.offset, "", event.reason))
                continue
            self.times[event.partition].append(event.time)
            values = self.valued(event)
            if values is None:
                self.filtered += 1
            else:
                rows.append((event, values))
        for version in self.versions.values():
            missed = _count(version, rows)
            if version.spec.get("latePolicy") == "drop":
                version.late["dropped"] += len(missed)
                continue
            version.late["dead"] += len(missed)
            self.dead |= {(event.partition, event.offset, version.name, version.lateness(event)) for event in missed}

    def doubtful(self, event: Event, others: Iterable[Event]) -> bool:
        """Return True if the order of arrival among `others` decides whether an event is late.

        This is possible where sessions may merge.
        """
        values = self.valued(event)
        if values is None:
            return False
        for version in self.versions.values():
            if not version.has_sessions or version.end_of(event.time) > version.shut:
                continue
            group = version.group_of(values)
            for other in others:
                other_values = self.valued(other) if other.values is not None else None
                if other_values is not None and version.group_of(other_values) == group:
                    return True
        return False

    def is_late(self, time: int) -> bool:
        """Return True if an event of this time would miss a window."""
        return any(version.end_of(time) <= version.shut for version in self.versions.values())

    def replay(self, names: Iterable[str], number: Mapping[str, int]) -> None:
        """Fill new versions from all events by the current spec. No event is late."""
        rows = []
        for event in self.seen:
            values = None if event.values is None else self.valued(event)
            if values is not None:
                rows.append((event, values))
        for name in names:
            fresh = Version(self.versions[name].spec, number[name])
            fresh.add_columns()
            _count(fresh, rows)
            self.versions[name] = fresh
        self.settle()


def _count(version: Version, rows: Sequence[tuple[Event, Mapping[str, Any]]]) -> list[Event]:
    """Count events in a version, and return the events that missed a window."""
    if version.has_sessions:
        return _count_sessions(version, rows)
    late = []
    shut = version.shut
    for event, values in rows:
        missed = version.end_of(event.time) <= shut
        if missed:
            late.append(event)
        entry = Entry(event, values, shut if missed else NO_CUT, version.layout)
        if version.starts(entry):
            version.entries.append(entry)
    return late


def _count_sessions(version: Version, rows: Sequence[tuple[Event, Mapping[str, Any]]]) -> list[Event]:
    shut = version.shut
    own = []
    for event, values in rows:
        entry = Entry(event, values, NO_CUT, version.layout)
        own.append(Session(version.group_of(values), event.time, version.end_of(event.time), [entry]))
    done = [session for session in version.sessions if session.end <= shut]
    covered = [s for s in own if s.end <= shut and any(d.meets(s) and d.start <= s.start for d in done)]
    hidden = {id(session) for session in covered}
    fresh = _joined([s for s in own if id(s) not in hidden])
    # Sessions that overlap because of an earlier late policy are merged only if an event overlaps with both.
    touched = [s for s in version.sessions if s.end > shut and any(s.meets(piece) for piece in fresh)]
    taken = {id(session) for session in touched}
    left = [session for session in version.sessions if id(session) not in taken]
    pieces = _joined(fresh + touched)
    late = [piece for piece in pieces if piece.end <= shut]
    version.sessions = left + [piece for piece in pieces if piece.end > shut]
    return [entry.event for piece in [*covered, *late] for entry in piece.entries]


def _joined(pieces: Sequence[Session]) -> list[Session]:
    """Merge sessions that overlap."""
    by_group: dict[tuple[Any, ...], list[Session]] = {}
    for piece in pieces:
        by_group.setdefault(piece.group, []).append(piece)
    merged = []
    for same in by_group.values():
        same.sort(key=lambda piece: piece.start)
        last = same[0]
        for piece in same[1:]:
            if last.meets(piece):
                last = last + piece
            else:
                merged.append(last)
                last = piece
        merged.append(last)
    return merged
