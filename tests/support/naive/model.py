"""The expected windows of the pipeline, computed from lists of their events."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from naive.pipeline import NAMES, REOPEN, SESSIONS, WINDOWS, Record


@dataclass
class Session:
    """An expected session: the events of a group, and the time from their start to their end."""

    group: tuple[Any, ...]
    start: int
    end: int
    events: list[Record]

    def meets(self, other: Session) -> bool:
        return self.group == other.group and self.start < other.end and other.start < self.end

    def __add__(self, other: Session) -> Session:
        start, end = min(self.start, other.start), max(self.end, other.end)
        return Session(self.group, start, end, self.events + other.events)


class Model:
    """The expected events of each window, as plain lists.

    Attributes:
        windows: events by group and start, for each aggregation with tumbling or hopping windows.
        sessions: sessions of each aggregation with session windows.
        closed: the time up to which each aggregation is closed.
        late: the number of late events of each aggregation.
    """

    def __init__(self) -> None:
        self.windows: dict[str, dict[tuple[Any, int], list[Record]]] = {name: defaultdict(list) for name in WINDOWS}
        self.sessions: dict[str, list[Session]] = {name: [] for name in SESSIONS}
        self.closed: dict[str, int | None] = dict.fromkeys(NAMES)
        self.late: dict[str, int] = dict.fromkeys(NAMES, 0)

    def final_until(self, name: str) -> int:
        """Return the time up to which windows of an aggregation accept no more events."""
        closed = self.closed[name]
        return -(2**63) if closed is None else closed - REOPEN.get(name, 0)

    def add(self, record: Record) -> None:
        if record.members.get("i") == 13:
            return
        time = record.members["ts"]
        for name, (size, hop, by_key) in WINDOWS.items():
            closed = self.final_until(name)
            newest = time // hop * hop
            missed = False
            for start in range(newest - size + hop, newest + 1, hop):
                if start + size <= closed:
                    missed = True
                else:
                    self.windows[name][record.members.get("k") if by_key else None, start].append(record)
            self.late[name] += missed

    def add_batch(self, records: list[Record]) -> None:
        """Add a batch of records. Which events of sessions are late depends on the other events of the batch."""
        for record in records:
            self.add(record)
        for name, (gap, longest, group) in SESSIONS.items():
            closed = self.final_until(name)
            new = []
            for record in records:
                time, members = record.members["ts"], record.members
                if members.get("i") != 13:
                    end = min(time + gap, (time // longest + 1) * longest)
                    new.append(Session(tuple(members.get(column) for column in group), time, end, [record]))
            stored = self.sessions[name]
            done = [session for session in stored if session.end <= closed]
            covered = [e for e in new if e.end <= closed and any(d.meets(e) and d.start <= e.start for d in done)]
            pieces = [s for s in stored if s.end > closed] + [e for e in new if e not in covered]
            for _ in range(len(pieces)):
                pieces = merged(pieces)
            late = [piece for piece in pieces if piece.end <= closed]
            self.late[name] += len(covered) + sum(len(piece.events) for piece in late)
            self.sessions[name] = done + [piece for piece in pieces if piece.end > closed]

    def expected(self, name: str) -> dict[tuple[Any, ...], list[Record]]:
        """Return the events of an aggregation by group, start and end."""
        if name in SESSIONS:
            return {(*s.group, s.start, s.end): s.events for s in self.sessions[name]}
        size, _, by_key = WINDOWS[name]
        keys = {(k, start): ((k,) if by_key else ()) for k, start in self.windows[name]}
        return {(*keys[k, s], s, s + size): events for (k, s), events in self.windows[name].items()}


def merged(pieces: list[Session]) -> list[Session]:
    """Merge the first two sessions that overlap."""
    for i, piece in enumerate(pieces):
        for other in pieces[i + 1 :]:
            if piece.meets(other):
                return [piece + other, *(p for p in pieces if p is not piece and p is not other)]
    return pieces


def expected(events: list[Record]) -> dict[str, Any]:
    """Return the expected metrics of a window with these events."""
    ordered = sorted(events, key=lambda r: (r.members["ts"], r.us, r.p, r.o))
    v = [r.members["v"] for r in ordered if r.members.get("v") is not None]
    i = [r.members["i"] for r in ordered if r.members.get("i") is not None]
    k = [r.members["k"] for r in ordered if r.members.get("k") is not None]

    def spread(values: list[Any]) -> float | None:
        if not values:
            return None
        mean = math.fsum(values) / len(values)
        return math.fsum((x - mean) ** 2 for x in values) / len(values)

    deviation = spread(i)
    return {
        "n": len(ordered), "nv": len(v), "sv": math.fsum(v) if v else None, "si": sum(i) if i else None,
        "av": math.fsum(v) / len(v) if v else None, "mn": min(v, default=None), "mx": max(i, default=None),
        "fst": v[0] if v else None, "lst": k[-1] if k else None, "va": spread(v),
        "sd": None if deviation is None else math.sqrt(deviation),
        "share": sum(x > 5 for x in v) / len(v) if v else None, "p90": nearest_rank(v, 0.9),
        "low": nearest_rank(v, 0.01), "uk": len(set(k)) if k else None, "ui": len(set(i)) if i else None,
        "tk": most_frequent(k), "ti": most_frequent(i, 3), "tb": most_frequent([x > 5 for x in v]),
    }  # fmt: skip


def most_frequent(values: list[Any], k: int = 10) -> list[dict[str, Any]] | None:
    """Return the expected result of `topk`."""
    counts = sorted((-count, value) for value, count in Counter(values).items())
    return [{"value": value, "count": -count, "error": 0} for count, value in counts[:k]] or None


def nearest_rank(values: list[float], q: float) -> float | None:
    """Return the expected result of `quantile`."""
    return sorted(values)[math.ceil(q * len(values)) - 1] if values else None


def close(a: Any, b: Any, scale: float) -> bool:
    """Return whether two results are equal, within rounding errors relative to `scale`."""
    if a is None or b is None or not isinstance(b, float):
        return bool(a == b)
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9 * scale)
