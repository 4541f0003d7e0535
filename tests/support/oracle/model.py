"""What the platform must have counted: every event in each of its windows, kept as lists, decided one by one."""

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
    """An event that counts.

    Attributes:
        cut: windows that end by this do not have it.
        layout: how many sets of columns had been fed when it came.
    """

    event: Event
    values: Mapping[str, Any]
    cut: int
    layout: int

    @property
    def order(self) -> tuple[int, int, int]:
        """Earlier events first."""
        return self.event.time, self.event.partition, self.event.offset


@dataclass
class Session:
    """Events of a group, and the time that they span."""

    group: tuple[Any, ...]
    start: int
    end: int
    entries: list[Entry]

    def meets(self, other: Session) -> bool:
        """Whether the two are one."""
        return self.group == other.group and self.start < other.end and other.start < self.end

    def __add__(self, other: Session) -> Session:
        start, end = min(self.start, other.start), max(self.end, other.end)
        return Session(self.group, start, end, self.entries + other.entries)


@dataclass
class Version:
    """One version of an aggregation.

    Attributes:
        spec: as it applies to the next event.
        number: of the version.
        closed: up to when windows are closed, epoch ms.
        entries, sessions: what it has counted.
        fed: by column, since which layout it is fed.
        late: events of which windows had been closed.
    """

    spec: Mapping[str, Any]
    number: int
    closed: int | None = None
    entries: list[Entry] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    layout: int = 0
    fed: dict[str, int] = field(default_factory=dict)
    late: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        """The aggregation's."""
        return str(self.spec["name"])

    @property
    def groups(self) -> list[str]:
        """Group columns."""
        return list(self.spec.get("groupBy", ()))

    @property
    def has_sessions(self) -> bool:
        """Whether its windows are sessions."""
        return bool(self.spec["window"]["type"] == "session")

    @cached_property
    def longest(self) -> int:
        """Length of a session, the most."""
        return size_of(self.spec["window"])

    @cached_property
    def clock(self) -> Clock:
        """Where windows start; of sessions how finely they close."""
        return clock_of(self.spec["window"])

    @cached_property
    def panes(self) -> int:
        """Number of windows that have an event."""
        return 1 if self.has_sessions else panes_of(self.spec["window"])

    @cached_property
    def gap(self) -> int:
        """Of sessions."""
        return parse_ms(self.spec["window"]["gap"])

    @property
    def shut(self) -> int:
        """Windows that end by this take nothing more."""
        if self.closed is None:
            return NO_CUT
        reopens = self.spec.get("latePolicy") == "reopen"
        return self.closed - (self.retention if reopens else 0)

    @property
    def retention(self) -> int:
        """How long windows are kept, counted back from what is closed."""
        return parse_ms(self.spec.get("retention", "90d"))

    def lateness(self, event: Event) -> str:
        """The reason of a late event's dead letter."""
        return "too_old" if event.time < (self.closed or 0) - self.retention else "late"

    def end_of(self, time: int) -> int:
        """The end of the session that an event is by itself, else of the first window that has it."""
        if self.has_sessions:
            return min(time + self.gap, (time // self.longest + 1) * self.longest)
        return self.clock.shift(self.clock.floor(time), 1)

    def group_of(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """The group of an event."""
        return tuple(values[name] for name in self.groups)

    def starts(self, entry: Entry) -> list[int]:
        """Starts of the windows that have an event."""
        newest = self.clock.floor(entry.event.time)
        starts = [self.clock.shift(newest, -back) for back in range(self.panes)]
        return [start for start in reversed(starts) if self.clock.shift(start, self.panes) > entry.cut]

    def close(self, watermark: int | None) -> None:
        """Close what ends by the watermark less grace."""
        if watermark is not None:
            grace = parse_ms(self.spec["window"].get("grace", "0s"))
            until = self.clock.floor(watermark - grace)
            self.closed = until if self.closed is None else max(self.closed, until)

    def feed(self) -> None:
        """Note which columns are fed from now on; those before are fed on."""
        wanted = {column for metric in self.spec["metrics"] for column in columns_of(metric)}
        if fresh := wanted - self.fed.keys():
            self.layout += bool(self.fed)
            self.fed |= dict.fromkeys(fresh, self.layout)


class Model:
    """A pipeline."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.versions: dict[str, Version] = {}
        self.dead: set[tuple[int, int, str, str]] = set()
        self.seen: list[Event] = []
        self.filtered = 0
        self.times: dict[int, list[int]] = {p: [] for p in range(spec["source"]["topic"]["partitions"])}
        self.types: dict[str, str] = {}
        self.apply(spec)

    def apply(self, spec: Mapping[str, Any]) -> None:
        """An edit: it applies from the next event on."""
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
            known = self.versions.get(aggregation["name"])
            if known is None or self._shape(known.spec) != self._shape(aggregation):
                self.versions[aggregation["name"]] = Version(aggregation, 1 if known is None else known.number + 1)
            else:
                known.spec = aggregation
            self.versions[aggregation["name"]].feed()
        self.settle()

    def _shape(self, aggregation: Mapping[str, Any]) -> str:
        window = {name: value for name, value in aggregation["window"].items() if name != "grace"}
        return repr((aggregation.get("groupBy"), sorted(window.items())))

    @property
    def watermark(self) -> int | None:
        """How far time has come: three events are needed before a partition's time is believed."""
        if any(len(times) < 3 for times in self.times.values()):
            return None
        return min(max(times) for times in self.times.values()) - self._disorder

    def settle(self) -> None:
        """Close windows up to the watermark, in every version."""
        for version in self.versions.values():
            version.close(self.watermark)

    def valued(self, event: Event) -> dict[str, Any] | None:
        """A valid event's fields and derives; None: the filter takes it out."""
        assert event.values is not None
        values = dict(event.values)
        for name, compute in self._derives:
            values[name] = compute(values)
        return values if self._passes is None or self._passes(values) is True else None

    def take(self, events: Sequence[Event]) -> None:
        """Count events that came while nothing was closed."""
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
        """Whether it depends on the order of arrival among `others` if an event is late: where sessions may join."""
        values = self.valued(event)
        if values is None:
            return False
        for version in self.versions.values():
            if not version.has_sessions or version.end_of(event.time) > version.shut:
                continue
            group = version.group_of(values)
            for other in others:
                found = self.valued(other) if other.values is not None else None
                if found is not None and version.group_of(found) == group:
                    return True
        return False

    def is_late(self, time: int) -> bool:
        """Whether some window that has an event of this time takes nothing more."""
        return any(version.end_of(time) <= version.shut for version in self.versions.values())

    def replay(self, names: Iterable[str], number: Mapping[str, int]) -> None:
        """Fill versions anew by the spec as it is: nothing is late."""
        rows = []
        for event in self.seen:
            values = None if event.values is None else self.valued(event)
            if values is not None:
                rows.append((event, values))
        for name in names:
            fresh = Version(self.versions[name].spec, number[name])
            fresh.feed()
            _count(fresh, rows)
            self.versions[name] = fresh
        self.settle()


def _count(version: Version, rows: Sequence[tuple[Event, Mapping[str, Any]]]) -> list[Event]:
    """Put events into a version; those that missed a window."""
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
    # Sessions that an earlier late policy has kept apart stay so, unless an event touches both.
    touched = [s for s in version.sessions if s.end > shut and any(s.meets(piece) for piece in fresh)]
    taken = {id(session) for session in touched}
    left = [session for session in version.sessions if id(session) not in taken]
    pieces = _joined(fresh + touched)
    late = [piece for piece in pieces if piece.end <= shut]
    version.sessions = left + [piece for piece in pieces if piece.end > shut]
    return [entry.event for piece in [*covered, *late] for entry in piece.entries]


def _joined(pieces: Sequence[Session]) -> list[Session]:
    """Those that meet made one."""
    by_group: dict[tuple[Any, ...], list[Session]] = {}
    for piece in pieces:
        by_group.setdefault(piece.group, []).append(piece)
    found = []
    for same in by_group.values():
        same.sort(key=lambda piece: piece.start)
        last = same[0]
        for piece in same[1:]:
            if last.meets(piece):
                last = last + piece
            else:
                found.append(last)
                last = piece
        found.append(last)
    return found
