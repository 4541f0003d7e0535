"""Reads as many windows as possible if some windows make the query fail."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import psycopg

from tidemill_contract.times import rfc3339_ms
from tidemill_processor.blame import is_fault, reason
from tidemill_processor.keeper.skipped import Skip
from tidemill_processor.windows.reader import WHOLE, Cut, Query, WindowReader

MOST_PROBES = 400
"""After this many queries, a search for unreadable windows stops dividing the windows."""
MOST_HALVES = 40
_NOTHING = Cut(first_ms=1, last_ms=0)
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MS = dt.timedelta(milliseconds=1)


@dataclass(frozen=True)
class _Keys:
    first_ms: int
    last_ms: int
    several_groups: bool
    row: tuple[Any, ...] | None


class Salvage:
    """Reads all readable windows of a query."""

    def __init__(
        self, connection: psycopg.Connection[Any], reader: WindowReader, query: Callable[[Cut], Query]
    ) -> None:
        self._connection, self._reader, self._query = connection, reader, query
        self._probes = 0
        self.skips: list[Skip] = []

    def rows(self) -> Iterator[list[Any]]:
        """Yield the windows in the form of `WindowReader.rows`.

        Raises:
            Exception: a query that selects no windows fails too, for example because a column is missing.
        """
        if (error := self._failure(_NOTHING)) is not None:
            raise error
        parts = [WHOLE]
        while parts:
            part = parts.pop()
            error = self._failure(part)
            if error is None:
                yield from self._read(part, {})
            elif halves := self._halves(part):
                parts += reversed(halves)
            else:
                yield from self._without(part, error)

    def _failure(self, part: Cut) -> Exception | None:
        self._probes += 1
        try:
            with self._connection.transaction():
                for _ in self._reader.fetch(self._connection, self._query(part)):
                    pass
        except Exception as error:
            if not is_fault(error):
                raise
            return error
        return None

    def _halves(self, part: Cut) -> list[Cut]:
        if self._probes >= MOST_PROBES:
            return []
        keys = self._keys(part)
        if keys is not None and keys.first_ms < keys.last_ms:
            middle = (keys.first_ms + keys.last_ms) // 2
            return [
                replace(part, first_ms=keys.first_ms, last_ms=middle),
                replace(part, first_ms=middle + 1, last_ms=keys.last_ms),
            ]
        if self._reader.groups and part.depth < MOST_HALVES and (keys is None or keys.several_groups):
            deeper = part.depth + 1
            return [replace(part, depth=deeper), replace(part, depth=deeper, bits=part.bits + 2**part.depth)]
        return []

    def _keys(self, part: Cut) -> _Keys | None:
        first, first_ms, last_ms, several = None, 0, 0, False
        at = len(self._reader.groups)
        bare = replace(part, without=frozenset(self._reader.metrics))
        try:
            with self._connection.transaction():
                for row in self._reader.fetch(self._connection, self._query(bare)):
                    start = (row[at] - _EPOCH) // _MS
                    if first is None:
                        first, first_ms, last_ms = row, start, start
                    first_ms, last_ms = min(first_ms, start), max(last_ms, start)
                    several = several or row[:at] != first[:at]
        except Exception as error:
            if not is_fault(error):
                raise
            return None
        return _Keys(first_ms, last_ms, several, first)

    def _without(self, part: Cut, error: Exception) -> Iterator[list[Any]]:
        names, bad = frozenset(self._reader.metrics), dict[str, str]()
        for name in self._reader.metrics:
            if (cause := self._failure(replace(part, without=names - {name}))) is not None:
                bad[name] = reason(cause)
        rest = replace(part, without=frozenset(bad))
        failure: Exception | None = error if not bad else self._failure(rest)
        if failure is None:
            yield from self._read(rest, bad)
        else:
            self.skips.append(self._named(part, failure))

    def _named(self, part: Cut, error: Exception) -> Skip:
        keys = self._keys(part)
        if keys is None or keys.row is None:
            first, last = (None if ms is None else rfc3339_ms(ms) for ms in (part.first_ms, part.last_ms))
            return Skip(reason(error), first, last if last != first else None)
        first, last = rfc3339_ms(keys.first_ms), rfc3339_ms(keys.last_ms)
        group = None
        if not keys.several_groups:
            group = _group(self._reader, self._reader.window(keys.row))
        return Skip(reason(error), first, last if last != first else None, group)

    def _read(self, part: Cut, bad: Mapping[str, str]) -> Iterator[list[Any]]:
        for row in self._reader.fetch(self._connection, self._query(part)):
            unread = dict(bad)
            try:
                window = self._reader.window(row, unread)
                at = len(self._reader.groups)
                group, start = _group(self._reader, window), window[at]
                self._clear(window, unread)
            except Exception as error:
                self.skips.append(Skip(reason(error)))
                continue
            for name, why in unread.items():
                self.skips.append(Skip(why, start, None, group, (name,)))
            yield window

    def _clear(self, window: list[Any], unread: dict[str, str]) -> None:
        at = len(self._reader.groups) + 2
        for index, name in enumerate(self._reader.metrics, at):
            try:
                msgspec.json.encode(window[index])
            except Exception as error:
                window[index], unread[name] = None, reason(error)


def _group(reader: WindowReader, window: list[Any]) -> str:
    return json.dumps(dict(zip(reader.groups, window, strict=False)), sort_keys=True)
