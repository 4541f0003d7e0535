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
from tidemill_processor.errors import error_text, is_permanent
from tidemill_processor.keeper.skipped import Skip
from tidemill_processor.windows.reader import ALL_WINDOWS, Query, WindowFilter, WindowReader

MAX_PROBES = 400
"""After this many queries, a search for unreadable windows stops dividing the windows."""
MAX_HALVES = 40
_NO_WINDOWS = WindowFilter(first_ms=1, last_ms=0)
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MS = dt.timedelta(milliseconds=1)


@dataclass(frozen=True)
class _KeyRange:
    first_ms: int
    last_ms: int
    several_groups: bool
    row: tuple[Any, ...] | None


class Salvage:
    """Reads all readable windows of a query."""

    def __init__(
        self, connection: psycopg.Connection[Any], reader: WindowReader, query: Callable[[WindowFilter], Query]
    ) -> None:
        self._connection, self._reader, self._query = connection, reader, query
        self._probes = 0
        self.skips: list[Skip] = []

    def rows(self) -> Iterator[list[Any]]:
        """Yield the windows in the form of `WindowReader.rows`.

        Raises:
            Exception: a query that selects no windows fails too, for example because a column is missing.
        """
        if (error := self._find_error(_NO_WINDOWS)) is not None:
            raise error
        parts = [ALL_WINDOWS]
        while parts:
            part = parts.pop()
            error = self._find_error(part)
            if error is None:
                yield from self._read(part, {})
            elif halves := self._halves(part):
                parts += reversed(halves)
            else:
                yield from self._read_partly(part, error)

    def _find_error(self, part: WindowFilter) -> Exception | None:
        self._probes += 1
        try:
            with self._connection.transaction():
                for _ in self._reader.fetch(self._connection, self._query(part)):
                    pass
        except Exception as error:
            if not is_permanent(error):
                raise
            return error
        return None

    def _halves(self, part: WindowFilter) -> list[WindowFilter]:
        if self._probes >= MAX_PROBES:
            return []
        keys = self._key_range(part)
        if keys is not None and keys.first_ms < keys.last_ms:
            middle = (keys.first_ms + keys.last_ms) // 2
            return [
                replace(part, first_ms=keys.first_ms, last_ms=middle),
                replace(part, first_ms=middle + 1, last_ms=keys.last_ms),
            ]
        if self._reader.groups and part.depth < MAX_HALVES and (keys is None or keys.several_groups):
            depth = part.depth + 1
            return [replace(part, depth=depth), replace(part, depth=depth, bits=part.bits + 2**part.depth)]
        return []

    def _key_range(self, part: WindowFilter) -> _KeyRange | None:
        first, first_ms, last_ms, several = None, 0, 0, False
        start_index = len(self._reader.groups)
        without_metrics = replace(part, null_metrics=frozenset(self._reader.metrics))
        try:
            with self._connection.transaction():
                for row in self._reader.fetch(self._connection, self._query(without_metrics)):
                    start = (row[start_index] - _EPOCH) // _MS
                    if first is None:
                        first, first_ms, last_ms = row, start, start
                    first_ms, last_ms = min(first_ms, start), max(last_ms, start)
                    several = several or row[:start_index] != first[:start_index]
        except Exception as error:
            if not is_permanent(error):
                raise
            return None
        return _KeyRange(first_ms, last_ms, several, first)

    def _read_partly(self, part: WindowFilter, error: Exception) -> Iterator[list[Any]]:
        names, errors = frozenset(self._reader.metrics), dict[str, str]()
        for name in self._reader.metrics:
            if (cause := self._find_error(replace(part, null_metrics=names - {name}))) is not None:
                errors[name] = error_text(cause)
        readable = replace(part, null_metrics=frozenset(errors))
        failure: Exception | None = error if not errors else self._find_error(readable)
        if failure is None:
            yield from self._read(readable, errors)
        else:
            self.skips.append(self._skip_for(part, failure))

    def _skip_for(self, part: WindowFilter, error: Exception) -> Skip:
        keys = self._key_range(part)
        if keys is None or keys.row is None:
            first, last = (None if ms is None else rfc3339_ms(ms) for ms in (part.first_ms, part.last_ms))
            return Skip(error_text(error), first, last if last != first else None)
        first, last = rfc3339_ms(keys.first_ms), rfc3339_ms(keys.last_ms)
        group = None
        if not keys.several_groups:
            group = _group(self._reader, self._reader.convert_row(keys.row))
        return Skip(error_text(error), first, last if last != first else None, group)

    def _read(self, part: WindowFilter, known_errors: Mapping[str, str]) -> Iterator[list[Any]]:
        for row in self._reader.fetch(self._connection, self._query(part)):
            errors = dict(known_errors)
            try:
                window = self._reader.convert_row(row, errors)
                start_index = len(self._reader.groups)
                group, start = _group(self._reader, window), window[start_index]
                self._clear_unencodable(window, errors)
            except Exception as error:
                self.skips.append(Skip(error_text(error)))
                continue
            for name, why in errors.items():
                self.skips.append(Skip(why, start, None, group, (name,)))
            yield window

    def _clear_unencodable(self, window: list[Any], errors: dict[str, str]) -> None:
        first_metric = len(self._reader.groups) + 2
        for index, name in enumerate(self._reader.metrics, first_metric):
            try:
                msgspec.json.encode(window[index])
            except Exception as error:
                window[index], errors[name] = None, error_text(error)


def _group(reader: WindowReader, window: list[Any]) -> str:
    return json.dumps(dict(zip(reader.groups, window, strict=False)), sort_keys=True)
