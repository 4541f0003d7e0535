"""Compares answers of the REST API with the model: every cell, the order of rows, and missing or repeated rows."""

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
    """Return the number of compared cells, and the differences of an answer from the expected rows."""
    groups = list(version.groups if query.group_by is None else query.group_by)
    kinds = [model.types[name] for name in groups]
    faults: list[str] = []
    got: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    keys = []
    for row in rows:
        group = tuple(_typed(row[name], kind) for name, kind in zip(groups, kinds, strict=True))
        key = (*group, epoch_ms(dt.datetime.fromisoformat(row["window_start"])))
        if key in got:
            faults.append(f"{key}: answered twice")
        got[key] = row
        keys.append(key)
        if any(not exact(part).fits(row[name]) for name, part in zip(groups, group, strict=True)):
            faults.append(f"{key}: the group is written as {[row[name] for name in groups]}")
    if keys != sorted(keys, key=lambda key: _place(key, descending=query.descending)):
        faults.append("rows are in the wrong order")
    faults += [f"{_shown(expected[key])}: missing" for key in expected.keys() - got.keys()]
    faults += [f"{got[key]}: not expected" for key in got.keys() - expected.keys()]
    cells = 0
    for key in expected.keys() & got.keys():
        expected_row, row = expected[key], got[key]
        cells += len(expected_row.cells)
        faults += _wrong(expected_row, row)
        faults += _miscomputed(model, version, expected_row, row)
    return cells, faults


def summary(faults: Sequence[str]) -> str:
    """Return the first differences, and the number of further ones, as lines."""
    rest = len(faults) - _SHOWN
    return "\n".join([*(f"    {line}" for line in faults[:_SHOWN]), *([f"    … and {rest} more"] if rest > 0 else [])])


def _wrong(expected_row: Row, row: Mapping[str, Any]) -> list[str]:
    faults = []
    if epoch_ms(dt.datetime.fromisoformat(row["window_end"])) != expected_row.end:
        faults.append(f"{_shown(expected_row)}: window_end is {row['window_end']}")
    if row["closed"] != expected_row.closed:
        faults.append(f"{_shown(expected_row)}: closed is {row['closed']}")
    for name, cell in expected_row.cells.items():
        if name not in row:
            faults.append(f"{_shown(expected_row)}: {name} is missing")
        elif not cell.fits(row[name]):
            faults.append(f"{_shown(expected_row)}: {name} is {row[name]!r}, expected {cell.shown}")
    return faults


def _miscomputed(model: Model, version: Version, expected_row: Row, row: Mapping[str, Any]) -> list[str]:
    """Return the metrics by expression that differ from the expression over the metrics of the same row."""
    metrics, faults = version.spec["metrics"], []
    for name, cell in expected_row.cells.items():
        if cell.shown != COMPUTED or not {part["name"] for part in operands_of(metrics, name)} <= row.keys():
            continue
        expected = computed_cell(metrics, name, model.types, row)
        if not expected.fits(row[name]):
            faults.append(f"{_shown(expected_row)}: {name} is {row[name]!r}, but its operands give {expected.shown}")
    return faults


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
    """Return the sort key of a row: its start, then its group. Nulls are last in both directions."""
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
    """A string that sorts in reverse order."""

    __slots__ = ()

    def __lt__(self, other: str) -> bool:
        return str.__gt__(self, other)
