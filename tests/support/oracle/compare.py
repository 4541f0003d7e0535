"""Answers of the REST API against the model: every cell of every row, their order, and no row twice."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from oracle.cells import COMPUTED, computed_cell, exact, operands_of
from oracle.expressions import epoch_ms
from oracle.model import Model, Version
from oracle.queries import Query, Row

_SHOWN = 6


def differences(
    model: Model,
    version: Version,
    query: Query,
    expected: Mapping[tuple[Any, ...], Row],
    rows: Sequence[Mapping[str, Any]],
) -> tuple[int, list[str]]:
    """How many cells were compared, and what is wrong with the answer to a query."""
    groups = list(version.groups if query.group_by is None else query.group_by)
    kinds = [model.types[name] for name in groups]
    found: list[str] = []
    got: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    keys = []
    for row in rows:
        group = tuple(_typed(row[name], kind) for name, kind in zip(groups, kinds, strict=True))
        key = (*group, epoch_ms(dt.datetime.fromisoformat(row["window_start"])))
        if key in got:
            found.append(f"{key}: answered twice")
        got[key] = row
        keys.append(key)
        if any(not exact(part).fits(row[name]) for name, part in zip(groups, group, strict=True)):
            found.append(f"{key}: group is written {[row[name] for name in groups]}")
    if keys != sorted(keys, key=lambda key: _place(key, descending=query.descending)):
        found.append("rows are not in their order")
    found += [f"{_shown(expected[key])}: missing" for key in expected.keys() - got.keys()]
    found += [f"{got[key]}: not expected" for key in got.keys() - expected.keys()]
    cells = 0
    for key in expected.keys() & got.keys():
        want, row = expected[key], got[key]
        cells += len(want.cells)
        found += _wrong(want, row)
        found += _miscomputed(model, version, want, row)
    return cells, found


def summary(found: Sequence[str]) -> str:
    """The first few, and how many more."""
    rest = len(found) - _SHOWN
    return "\n".join([*(f"    {line}" for line in found[:_SHOWN]), *([f"    … and {rest} more"] if rest > 0 else [])])


def _wrong(want: Row, row: Mapping[str, Any]) -> list[str]:
    found = []
    if epoch_ms(dt.datetime.fromisoformat(row["window_end"])) != want.end:
        found.append(f"{_shown(want)}: window_end is {row['window_end']}")
    if row["closed"] != want.closed:
        found.append(f"{_shown(want)}: closed is {row['closed']}")
    for name, cell in want.cells.items():
        if name not in row:
            found.append(f"{_shown(want)}: {name} is not there")
        elif not cell.fits(row[name]):
            found.append(f"{_shown(want)}: {name} is {row[name]!r}, expected {cell.shown}")
    return found


def _miscomputed(model: Model, version: Version, want: Row, row: Mapping[str, Any]) -> list[str]:
    """Metrics by expression that are not what it gives of the metrics that the row answers."""
    metrics, found = version.spec["metrics"], []
    for name, cell in want.cells.items():
        if cell.shown != COMPUTED or not {part["name"] for part in operands_of(metrics, name)} <= row.keys():
            continue
        expected = computed_cell(metrics, name, model.types, row)
        if not expected.fits(row[name]):
            found.append(f"{_shown(want)}: {name} is {row[name]!r}, of its operands it is {expected.shown}")
    return found


def _shown(row: Row) -> str:
    start, end = (dt.datetime.fromtimestamp(at / 1000, dt.UTC).isoformat() for at in (row.start, row.end))
    return f"{list(row.group)} {start}/{end}"


def _typed(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind == "timestamp":
        return dt.datetime.fromisoformat(value)
    return float(value) if kind == "number" else value


def _place(key: tuple[Any, ...], *, descending: bool) -> list[tuple[bool, Any]]:
    """Where a row belongs: by start, then group, nulls last either way."""
    *group, start = key
    return [_part(value, descending=descending) for value in [start, *group]]


def _part(value: Any, *, descending: bool) -> tuple[bool, Any]:
    if value is None:
        return True, 0
    return False, _reverse(value) if descending else value


def _reverse(value: Any) -> Any:
    if isinstance(value, str):
        return _Reversed(value)
    if isinstance(value, dt.datetime):
        return -epoch_ms(value)
    return -value


class _Reversed(str):
    """A text that comes after those that it is less than."""

    __slots__ = ()

    def __lt__(self, other: str) -> bool:
        return str.__gt__(self, other)
