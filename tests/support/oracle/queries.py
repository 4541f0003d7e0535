"""Random queries of an aggregation, and their expected answers from the events of the model."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from oracle.cells import COMPUTED, ZERO_OF_NOTHING, Cell, columns_of, metric_cell, null, one_of, operands_of
from oracle.model import Entry, Model, Version
from oracle.windows import Clock
from tidemill_contract.times import rfc3339_ms

_LIMITS = (1, 3, 7, 50, 1_000)
_FILLED_PANES = 20
"""The number of panes in the range of a query with `fill`."""


@dataclass(frozen=True)
class Query:
    """A query.

    Attributes:
        group_by, metrics: some of the aggregation's, or None for all.
        granularity: the starts of buckets, 0 for a single bucket, or None for the windows themselves.
        since, until: the bounds of window starts in epoch milliseconds.
        fill: `none`, `null` or `zero`.
        descending: whether the newest windows come first.
        limit: the number of rows in a page.
    """

    group_by: tuple[str, ...] | None = None
    metrics: tuple[str, ...] | None = None
    granularity: Clock | Literal[0] | None = None
    since: int | None = None
    until: int | None = None
    fill: str = "none"
    descending: bool = False
    limit: int = 1_000

    def parameters(self) -> dict[str, Any]:
        """Return the parameters for the REST API."""
        parameters: dict[str, Any] = {"limit": self.limit}
        if self.group_by is not None:
            parameters["group_by"] = ",".join(self.group_by)
        if self.metrics is not None:
            parameters["metrics"] = ",".join(self.metrics)
        if self.granularity is not None:
            parameters["granularity"] = self.granularity.text if isinstance(self.granularity, Clock) else "all"
        if self.since is not None:
            parameters["from"] = rfc3339_ms(self.since)
        if self.until is not None:
            parameters["to"] = rfc3339_ms(self.until)
        if self.fill != "none":
            parameters["fill"] = self.fill
        if self.descending:
            parameters["order"] = "-window_start"
        return parameters


@dataclass(frozen=True)
class Row:
    """An expected row, identified by its group and start."""

    group: tuple[Any, ...]
    start: int
    end: int
    closed: bool
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Pile:
    """The events of one row."""

    group: tuple[Any, ...]
    start: int
    end: int
    entries: Sequence[Entry]


def answered(model: Model, version: Version, query: Query) -> dict[tuple[Any, ...], Row]:
    """Return the expected rows of a query, by group and start."""
    metrics = [m for m in version.spec["metrics"] if query.metrics is None or m["name"] in query.metrics]
    rows = {}
    piles = [pile for pile in _piles(version, query) if pile.entries]
    for pile in piles:
        closed = _closed(version, query, pile.end)
        ordered = sorted(pile.entries, key=lambda entry: entry.order)
        cells = {metric["name"]: _cell(model, version, metric, ordered, pile) for metric in metrics}
        rows[(*pile.group, pile.start)] = Row(pile.group, pile.start, pile.end, closed, cells)
    if query.fill != "none":
        rows |= _filled(version, query, metrics, rows)
    return rows


def _closed(version: Version, query: Query, end: int) -> bool:
    """Return True if a window or bucket with this end is closed.

    A bucket is closed with the last window that has events of the bucket.
    """
    if version.closed is None:
        return False
    return (end if query.granularity is None else version.clock.shift(end, version.panes - 1)) <= version.closed


def _cell(model: Model, version: Version, metric: Mapping[str, Any], entries: Sequence[Entry], pile: Pile) -> Cell:
    operands = operands_of(version.spec["metrics"], metric["name"])
    since = max(version.column_layouts[column] for operand in operands for column in columns_of(operand))
    if any(entry.layout < since for entry in entries):
        return null()  # A column that was added later lacks earlier events.
    if metric["function"] == "expression":
        return one_of(lambda _: True, COMPUTED)
    return metric_cell(metric, model.types, [entry.values for entry in entries], pile.end - pile.start)


def _piles(version: Version, query: Query) -> Iterator[Pile]:
    kept = [version.groups.index(name) for name in (version.groups if query.group_by is None else query.group_by)]
    if version.has_sessions:
        for session in version.sessions:
            if _within(query, session.start):
                yield Pile(session.group, session.start, session.end, session.entries)
        return
    by_start: dict[tuple[Any, ...], list[Entry]] = defaultdict(list)
    for entry in version.entries:
        group = tuple(version.group_of(entry.values)[at] for at in kept)
        for start in _starts(version, query, entry):
            by_start[(*group, start)].append(entry)
    for (*key, start), entries in by_start.items():
        if query.granularity != 0:
            yield Pile(tuple(key), start, _end(version, query, start), entries)
            continue
        panes = [version.clock.floor(entry.event.time) for entry in entries]
        first = min(panes) if query.since is None else query.since
        last = version.clock.shift(max(panes), 1) if query.until is None else query.until
        yield Pile(tuple(key), first, last, entries)


def _end(version: Version, query: Query, start: int) -> int:
    """Return the end of a window or bucket."""
    if isinstance(query.granularity, Clock):
        return query.granularity.shift(start, 1)
    return version.clock.shift(start, version.panes)


def _starts(version: Version, query: Query, entry: Entry) -> Iterable[int]:
    if query.granularity is None:
        return [start for start in version.starts(entry) if _within(query, start)]
    pane = version.clock.floor(entry.event.time)
    if not isinstance(query.granularity, Clock):
        return [0] if _within(query, pane) else []
    start = query.granularity.floor(pane)
    return [start] if _within(query, start) and (query.since is None or pane >= query.since) else []


def _within(query: Query, start: int) -> bool:
    return (query.since is None or start >= query.since) and (query.until is None or start < query.until)


def _filled(
    version: Version,
    query: Query,
    metrics: Sequence[Mapping[str, Any]],
    rows: Mapping[tuple[Any, ...], Row],
) -> dict[tuple[Any, ...], Row]:
    """Return a row for each start that a group with events lacks."""
    assert query.since is not None
    assert query.until is not None
    clock = query.granularity if isinstance(query.granularity, Clock) else version.clock
    starts, start = [], clock.floor(query.since)
    while start < query.until:
        starts += [start] if start >= query.since else []
        start = clock.shift(start, 1)
    added = {}
    for group in {row.group for row in rows.values()}:
        for start in starts:
            if (*group, start) in rows:
                continue
            end = _end(version, query, start)
            cells = {metric["name"]: _nothing(metric, query.fill) for metric in metrics}
            added[(*group, start)] = Row(group, start, end, _closed(version, query, end), cells)
    return added


def _nothing(metric: Mapping[str, Any], fill: str) -> Cell:
    """Return the cell of a metric without events: zero for counts and sums with `fill=zero`, else null."""
    if fill == "zero" and metric["function"] in ZERO_OF_NOTHING:
        return Cell("0", lambda answer: not isinstance(answer, bool) and answer == 0)
    return null()


def draw_queries(rnd: random.Random, version: Version, *, few: bool = False) -> list[Query]:
    """Draw queries for all windows and for parts of them; only one query with `few`."""
    natural = [Query(limit=rnd.choice([7, 50, 1_000])), Query(limit=rnd.choice([7, 50, 1_000]), descending=True)]
    if few:
        return natural[:1]
    times = [e.event.time for e in version.entries] or [s.start for s in version.sessions]
    if not times:
        return natural
    low, high = min(times), max(times)
    names = [metric["name"] for metric in version.spec["metrics"]]
    some = tuple(name for name in names if rnd.random() < 0.5) or (names[0],)
    cut = rnd.randint(low, high)
    parts = [Query(metrics=some, since=cut, limit=50), Query(until=cut, limit=50, descending=rnd.random() < 0.5)]
    if version.has_sessions:
        return natural + parts
    subset = tuple(name for name in version.groups if rnd.random() < 0.5)
    panes = rnd.choice([1, 2, 3, 10])
    length = version.clock.times(panes)
    start, end = length.shift(length.floor(low), -1), length.shift(length.floor(high), 2)
    start = max(start, length.shift(end, -max(_FILLED_PANES // panes, 2)))
    fill, other = (rnd.choice(["null", "zero"]) for _ in range(2))
    return [
        *natural, *parts,
        Query(group_by=subset, limit=rnd.choice(_LIMITS)),
        Query(group_by=subset, granularity=length, limit=rnd.choice(_LIMITS)),
        Query(granularity=length, descending=True, limit=rnd.choice(_LIMITS)), Query(granularity=0),
        Query(group_by=subset, granularity=0, since=start, until=end),
        Query(fill=fill, since=start, until=end, limit=10_000),
        Query(fill=other, group_by=subset, granularity=length, since=start, until=end, limit=rnd.choice(_LIMITS)),
    ]  # fmt: skip
