"""Reads many Avro records of one schema together, member by member, with numpy.

Schemas with arrays, maps or recursive types are not supported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill_contract.calendars import DAY_MS
from tidemill_contract.events.formats.framing import FRAME_BYTES
from tidemill_contract.resource.paths import Steps
from tidemill_processor.formats.avro_code import (
    MAX_BRANCHES,
    MalformedError,
    UnsupportedError,
    WantedMember,
    decimal_factor,
    read_long,
)
from tidemill_processor.formats.avro_types import AvroSchema, Node

Positions = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.int64]
Columns = dict[int, list[Any]]
Step = Callable[["_Records", Positions], tuple[Positions, Columns]]

_MAX_DAYS = 2**31
_MAX_STEPS = 2_000
_HAS_ROW = -1
_PADDING = bytes(8)
_ONE, _SEVEN, _LAST = np.uint64(1), np.uint64(0x7F7F7F7F7F7F7F7F), np.uint64(0x8080808080808080)


class _Records:
    """The bytes of records, joined together.

    Attributes:
        data: the joined bytes.
        byte_array: the bytes of `data` and some padding, as an array of numbers.
        doubles, floats: for each index in `data`, the number that begins at this index.
        big: for each index in `data`, the big-endian integer of eight bytes that begins at this index.
    """

    def __init__(self, raws: Sequence[bytes]) -> None:
        self.data = b"".join(raws)
        padded = self.data + _PADDING

        def view(kind: str) -> npt.NDArray[Any]:
            return np.ndarray((len(self.data) + 1,), kind, padded, strides=(1,))

        self.byte_array: npt.NDArray[np.uint8] = np.frombuffer(padded, np.uint8)
        self.doubles, self.floats, self.big = view("<f8"), view("<f4"), view(">u8")
        self._little = view("<u8")

    def unsigned(self, p: Positions) -> tuple[npt.NDArray[np.uint64], Positions]:
        first = self.byte_array[p]
        if first.max() < 128:
            return first.astype(np.uint64), p + 1
        words = self._little[p]
        # In a varint, the highest bit is 0 only in the last byte.
        ends = ~words & _LAST
        lowest = ends & -ends
        kept = lowest | (lowest - _ONE)
        sizes = np.bitwise_count(kept).astype(np.int64) >> 3
        words &= kept & _SEVEN
        numbers = words & np.uint64(127)
        for byte in range(1, int(sizes.max())):
            numbers |= (words >> np.uint64(byte)) & np.uint64(127 << 7 * byte)
        after = p + sizes
        for index in np.flatnonzero(ends == 0).tolist():
            numbers[index], after[index] = read_long(self.data, int(p[index]))
        return numbers, after

    def signed(self, p: Positions) -> tuple[Numbers, Positions]:
        codes, p = self.unsigned(p)
        return ((codes >> _ONE) ^ -(codes & _ONE)).view(np.int64), p

    def sizes(self, p: Positions) -> tuple[Numbers, Positions]:
        codes, p = self.unsigned(p)
        _check(not (codes & _ONE).any() and codes.max() >> _ONE <= len(self.data))
        return (codes >> _ONE).view(np.int64), p


def columns_reader(
    schema: AvroSchema, wanted: Sequence[WantedMember | None], row: type, *, within: Steps = (), op: Steps | None = None
) -> Callable[[Sequence[bytes]], tuple[list[Any], list[Any]]]:
    """Return a function for reading many records. Each record starts with a schema id."""
    builder = _StepBuilder(schema, within)
    wants = [(slot, each) for slot, each in enumerate(wanted) if each is not None]
    if op is not None:
        wants.append((len(wanted), WantedMember(op, "string")))
    step = builder.step_for(schema.parsed, (), wants)

    def read(raws: Sequence[bytes]) -> tuple[list[Any], list[Any]]:
        ends = np.cumsum(np.fromiter(map(len, raws), np.int64, len(raws)))
        begins = np.concatenate((np.zeros(1, np.int64), ends[:-1]))
        p, by_slot = step(_Records(raws), begins + FRAME_BYTES)
        _check(np.array_equal(p, ends))
        columns = [by_slot.get(slot) or repeat(None, len(raws)) for slot in range(len(wanted))]
        rows = list(map(row, *columns))
        if op is None and not within:
            return rows, []
        texts, has_row = by_slot.get(len(wanted), [None] * len(raws)), by_slot.get(_HAS_ROW, [True] * len(raws))
        return rows, [text if exists else None for text, exists in zip(texts, has_row, strict=True)]

    return read


def _check(fits: Any) -> None:
    if not fits:
        raise MalformedError


class _StepBuilder:
    def __init__(self, schema: AvroSchema, within: Steps) -> None:
        self._schema, self._within = schema, within
        self._open_records: list[str] = []
        self._step_count = 0

    def step_for(self, written: Any, path: Steps, wants: Sequence[tuple[int, WantedMember]]) -> Step:
        self._step_count += 1
        if self._step_count > _MAX_STEPS:
            raise UnsupportedError("a large schema")
        node = self._schema.node(written)
        leaves = [(slot, each) for slot, each in wants if each.steps == path]
        if node["type"] == "union":
            if len(node["branches"]) > MAX_BRANCHES:
                raise UnsupportedError("a union of many types")
            branches = [self.step_for(branch, path, wants) for branch in node["branches"]]
            rows = [self._schema.node(branch)["type"] != "null" for branch in node["branches"]]
            return partial(_union, branches, rows if path and path == self._within else None)
        if leaves and node["type"] != "null":
            return _leaf(node, *leaves[0])
        if node["type"] in ("record", "error"):
            return self._record(node, path, wants)
        if wants and node["type"] != "null":
            raise UnsupportedError(f"a path leads through {node['type']}")
        return _skip_step(node)

    def _record(self, node: Node, path: Steps, wants: Sequence[tuple[int, WantedMember]]) -> Step:
        name = str(node["name"])
        if name in self._open_records:
            raise UnsupportedError(f"{name} holds itself")
        self._open_records.append(name)
        steps = []
        for field in node["fields"]:
            inner = (*path, field["name"])
            steps.append(self.step_for(field["type"], inner, [w for w in wants if w[1].steps[: len(inner)] == inner]))
        self._open_records.remove(name)
        return partial(_record, steps)


def _record(steps: Sequence[Step], records: _Records, p: Positions) -> tuple[Positions, Columns]:
    columns: Columns = {}
    for step in steps:
        p, more = step(records, p)
        columns |= more
    return p, columns


def _union(
    branches: Sequence[Step], rows: Sequence[bool] | None, records: _Records, p: Positions
) -> tuple[Positions, Columns]:
    indexes, p, number = records.byte_array[p], p + 1, len(p)
    columns: Columns = {}
    handled = 0
    for index, branch in enumerate(branches):
        matching = np.flatnonzero(indexes == 2 * index)
        if not len(matching):
            continue
        handled += len(matching)
        p[matching], more = branch(records, p[matching])
        if rows is not None:
            more[_HAS_ROW] = [rows[index]] * len(matching)
        if len(matching) == number:
            return p, more
        positions = matching.tolist()
        for slot, values in more.items():
            column = columns.setdefault(slot, [None] * number)
            for position, value in zip(positions, values, strict=True):
                column[position] = value
    _check(handled == number)
    return p, columns


def _leaf(node: Node, slot: int, wanted: WantedMember) -> Step:
    kind = node["type"]
    match wanted.type, kind:
        case (("string" | "timestamp"), "string"):
            return partial(_text, slot)
        case "string", "enum":
            return partial(_symbol, slot, tuple(node["symbols"]))
        case "number", ("int" | "long"):
            return partial(_number, slot, np.float64, 1)
        case (("integer" | "timestamp"), ("int" | "long")):
            return partial(_number, slot, np.int64, DAY_MS if node.get("logicalType") == "date" else 1)
        case "number", ("float" | "double"):
            return partial(_float, slot, kind == "double")
        case "boolean", "boolean":
            return partial(_boolean, slot)
        case "decimal", ("bytes" | "fixed"):
            return partial(_decimal, slot, node, decimal_factor(node, wanted))
    raise UnsupportedError(f"{kind} as {wanted.type}")


def _text(slot: int, records: _Records, p: Positions) -> tuple[Positions, Columns]:
    sizes, p = records.sizes(p)
    after, text = p + sizes, records.data
    return after, {slot: [text[i:j].decode() for i, j in zip(p.tolist(), after.tolist(), strict=True)]}


def _symbol(slot: int, symbols: Sequence[str], records: _Records, p: Positions) -> tuple[Positions, Columns]:
    codes, p = records.unsigned(p)
    _check(not (codes & _ONE).any() and codes.max() >> _ONE < len(symbols))
    return p, {slot: [symbols[index] for index in (codes >> _ONE).tolist()]}


def _number(
    slot: int, kind: type[np.int64 | np.float64], factor: int, records: _Records, p: Positions
) -> tuple[Positions, Columns]:
    numbers, p = records.signed(p)
    if factor != 1:
        _check(numbers.min() >= -_MAX_DAYS and numbers.max() < _MAX_DAYS)
        numbers = numbers * factor
    return p, {slot: numbers.astype(kind).tolist()}


def _float(slot: int, double: bool, records: _Records, p: Positions) -> tuple[Positions, Columns]:
    numbers = records.doubles[p] if double else records.floats[p]
    return p + numbers.itemsize, {slot: numbers.tolist()}


def _boolean(slot: int, records: _Records, p: Positions) -> tuple[Positions, Columns]:
    flags = records.byte_array[p]
    _check(flags.max() < 2)
    return p + 1, {slot: (flags == 1).tolist()}


def _decimal(slot: int, node: Node, factor: int, records: _Records, p: Positions) -> tuple[Positions, Columns]:
    if node["type"] == "fixed":
        sizes = np.full(len(p), int(node["size"]))
    else:
        sizes, p = records.sizes(p)
    _check(sizes.min() >= 1 and sizes.max() <= 8)
    unscaled = records.big[p].astype(np.uint64).view(np.int64) >> (64 - 8 * sizes)
    limit = min(10 ** int(node["precision"]), 2**63 // factor)
    _check(-limit < unscaled.min() and unscaled.max() < limit)
    return p + sizes, {slot: (unscaled * factor).tolist()}


def _skip_step(node: Node) -> Step:
    match node["type"]:
        case "null":
            return lambda records, p: (p, {})
        case "boolean":
            return _skip_boolean
        case "int" | "long":
            return lambda records, p: (records.unsigned(p)[1], {})
        case "enum":
            return partial(_skip_symbol, len(node["symbols"]))
        case "float" | "double" | "fixed":
            size = {"float": 4, "double": 8}.get(node["type"]) or int(node["size"])
            return lambda records, p: (p + size, {})
        case "string" | "bytes":
            return _skip_bytes
    raise UnsupportedError(str(node["type"]))


def _skip_boolean(records: _Records, p: Positions) -> tuple[Positions, Columns]:
    _check(records.byte_array[p].max() < 2)
    return p + 1, {}


def _skip_symbol(number: int, records: _Records, p: Positions) -> tuple[Positions, Columns]:
    codes, p = records.unsigned(p)
    _check(not (codes & _ONE).any() and codes.max() >> _ONE < number)
    return p, {}


def _skip_bytes(records: _Records, p: Positions) -> tuple[Positions, Columns]:
    sizes, p = records.sizes(p)
    return p + sizes, {}
