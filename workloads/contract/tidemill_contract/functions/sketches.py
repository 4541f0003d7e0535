"""Compute quantiles, distinct counts and frequent values with sketches from the library DataSketches.

A sketch takes at most a few kilobytes:

- `quantiles` is a KLL sketch (Karnin, Lang, Liberty 2016, "Optimal quantile approximation in streams") with k = 400.
- `uniques` is a HyperLogLog sketch (Flajolet et al. 2007) with 2^13 registers.
- `frequent` is a frequent items sketch (Anderson et al. 2017, "A high-performance algorithm for identifying frequent
  items in data streams").

A stored value is a sequence of frames. Each frame contains the length of a sketch (4 bytes, big-endian) and the
sketch.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, takewhile
from typing import Any

import datasketches
import numpy as np

from tidemill_contract.decimals import scale_of, scaled_text
from tidemill_contract.functions.base import EXACT_INTEGERS, StoredColumn
from tidemill_contract.times import rfc3339_ms

QUANTILES_K = 400
UNIQUES_LG_K = 13
VALUE_BYTES = 256
"""The maximum size of a text. A longer text is shortened, and gets a part of its SHA-256, so that different texts stay
different."""
_PREFIX_BYTES = 200
_HEADER_BYTES = 4
_INTEGERS = b"\xff"
"""The first byte of a frame of integers. No sketch begins with this byte."""
_LONGS = datasketches.PyLongsSerDe()
_LOAD_FACTOR = 0.75
_NO_FALSE_NEGATIVES = datasketches.frequent_items_error_type.NO_FALSE_NEGATIVES


def slots_log2(list_size: int) -> int:
    """Return the base-2 logarithm of the number of slots in a sketch that lists `list_size` frequent values.

    A sketch with `M` slots counts up to `0.75 * M` different values exactly. With more different values, the counts may
    have errors. The error of each count is at most `3.5 / M` times the number of all values.
    """
    return max(9, (16 * list_size - 1).bit_length())


def build(partial: StoredColumn, values: Sequence[Any]) -> bytes | None:
    """Return a sketch of the values as stored bytes, or None if there are no values."""
    if not len(values):
        return None
    if partial.kind == "quantiles":
        if isinstance(values[0], int) and any(abs(value) > EXACT_INTEGERS for value in values):
            integers = datasketches.kll_items_sketch(QUANTILES_K)
            for value in values:
                integers.update(value)
            return _frame(_INTEGERS + integers.serialize(_LONGS))
        quantiles = datasketches.kll_doubles_sketch(QUANTILES_K)
        quantiles.update(np.asarray(values, dtype=np.float64))
        return _frame(quantiles.serialize())
    if partial.kind == "frequent":
        return _frame(_frequent_sketch(values, slots_log2(partial.list_size)).serialize())
    uniques = datasketches.hll_sketch(UNIQUES_LG_K, datasketches.tgt_hll_type.HLL_4)
    for value in values:
        # The sketch ignores an empty text, so every text gets a prefix.
        uniques.update(f"={value}" if isinstance(value, str) else value)
    return _frame(uniques.serialize_compact())


def compact(partial: StoredColumn, stored: bytes) -> bytes:
    """Merge the frames of a stored value into as few frames as possible.

    The result is usually a single frame. If `quantiles` has sketches of doubles and of integers, the result has two
    frames.
    """
    match partial.kind:
        case "quantiles":
            doubles, integers = _merge_quantiles(stored)
            frames: list[bytes] = [] if doubles.is_empty() else [_frame(doubles.serialize())]
            frames += [] if integers.is_empty() else [_frame(_INTEGERS + integers.serialize(_LONGS))]
            # Put the longest frame first, so that processors do not compact the value again. Processors compact a long
            # value that is more than twice as long as its first frame.
            frames.sort(key=len, reverse=True)
            return b"".join(frames)
        case "frequent":
            return _frame(_merge_frequent(stored).serialize())
        case _:
            return _frame(_merge_uniques(stored).serialize_compact())


def quantile_reader(q: float) -> Callable[[bytes | None], float | int | None]:
    """Return a function for a quantile of a stored sketch: the smallest value with a rank of at least q."""

    def quantile(stored: bytes | None) -> float | int | None:
        if not stored:
            return None if stored is None else 0.0
        doubles, integers = _merge_quantiles(stored)
        if integers.is_empty():
            return float(doubles.get_quantile(q, True))
        return _quantile([*doubles, *integers], q)

    return quantile


def read_distinct(stored: bytes | None) -> int | None:
    """Return the number of different values in a stored sketch, or None for null."""
    if not stored:
        return None if stored is None else 0
    estimate: float = _merge_uniques(stored).get_estimate()
    return round(estimate)


def _quantile(weighted: list[tuple[float | int, int]], q: float) -> float | int:
    weighted.sort()
    ranks = list(accumulate(weight for _, weight in weighted))
    value, _ = weighted[bisect_left(ranks, math.ceil(q * ranks[-1]))]
    return value if abs(value) > EXACT_INTEGERS else float(value)


def _unchanged(value: Any) -> Any:
    return value


def _value_formatter(field_type: str | None) -> Callable[[Any], Any]:
    scale = scale_of(field_type)
    if scale is not None:
        return lambda scaled: scaled_text(scaled, scale)
    return rfc3339_ms if field_type == "timestamp" else _unchanged


def top_values_reader(k: int, field_type: str | None) -> Callable[[bytes | None], list[dict[str, Any]] | None]:
    """Return a function for the k most frequent values of a stored sketch, the most frequent first.

    The function returns items {value, count, error}. A value occurred at most `count` and at least `count - error`
    times.
    """
    parse = _PARSERS["integer"] if scale_of(field_type) is not None else _PARSERS.get(str(field_type), str)
    # Times are sorted as numbers, because the text 10:00:00.5Z sorts before 10:00:00Z.
    format_value = _value_formatter(field_type)

    def topk(stored: bytes | None) -> list[dict[str, Any]] | None:
        if not stored:
            return None
        items = _merge_frequent(stored).get_frequent_items(_NO_FALSE_NEGATIVES)
        if len(items) > k:
            least = items[k - 1][1]
            items = takewhile(lambda item: item[1] >= least, items)
        value_counts = [(-most, parse(text), most - fewest) for text, most, fewest, _ in items]
        return [
            {"value": format_value(value), "count": -count, "error": error}
            for count, value, error in sorted(value_counts)[:k]
        ]

    return topk


_PARSERS: dict[str, Callable[[str], Any]] = {
    "integer": int,
    "number": float,
    "boolean": "true".__eq__,
    "timestamp": int,
}


_FORMATTERS: dict[type, Callable[[Any], str]] = {
    str: lambda value: value if len(value) * 4 <= VALUE_BYTES else _shortened(value),
    float: lambda value: repr(value + 0.0),  # turns -0.0 into 0.0
    bool: {True: "true", False: "false"}.__getitem__,
    int: str,
}


def _shortened(text: str) -> str:
    raw = text.encode()
    if len(raw) <= VALUE_BYTES:
        return text
    return f"{raw[:_PREFIX_BYTES].decode(errors='ignore')}…{hashlib.sha256(raw).hexdigest()[:16]}"


def _frequent_sketch(values: Sequence[Any], log2: int) -> Any:
    counts = list(Counter(values).items())
    if len(counts) > _LOAD_FACTOR * 2**log2:
        # Add rare values first. A full sketch drops values, and then has only rare values to drop.
        counts.sort()
        counts.sort(key=lambda pair: pair[1])
    sketch, to_text = datasketches.frequent_strings_sketch(log2), _FORMATTERS[type(values[0])]
    for value, count in counts:
        sketch.update(to_text(value), count)
    return sketch


def _frame(sketch: bytes) -> bytes:
    return len(sketch).to_bytes(_HEADER_BYTES, "big") + sketch


def _frames(stored: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(stored):
        end = start + _HEADER_BYTES + int.from_bytes(stored[start : start + _HEADER_BYTES], "big")
        yield stored[start + _HEADER_BYTES : end]
        start = end


def _merge_quantiles(stored: bytes) -> tuple[Any, Any]:
    doubles, integers = datasketches.kll_doubles_sketch(QUANTILES_K), datasketches.kll_items_sketch(QUANTILES_K)
    for frame in _frames(stored):
        if frame.startswith(_INTEGERS):
            integers.merge(datasketches.kll_items_sketch.deserialize(frame[len(_INTEGERS) :], _LONGS))
        else:
            doubles.merge(datasketches.kll_doubles_sketch.deserialize(frame))
    return doubles, integers


def _merge_uniques(stored: bytes) -> Any:
    union = datasketches.hll_union(UNIQUES_LG_K)
    for frame in _frames(stored):
        union.update(datasketches.hll_sketch.deserialize(frame))
    return union.get_result(datasketches.tgt_hll_type.HLL_4)


def _merge_frequent(stored: bytes) -> Any:
    # SQL joins frames in any order. Sorted frames give the same result for every order.
    parts = [datasketches.frequent_strings_sketch.deserialize(frame) for frame in sorted(_frames(stored))]
    parts.sort(key=lambda part: float(part.epsilon))
    for part in parts[1:]:
        parts[0].merge(part)
    return parts[0]
