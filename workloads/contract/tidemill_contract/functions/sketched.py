"""Functions that store a sketch: quantiles, distinct counts and top k."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, ClassVar

from pydantic import Field

from tidemill_contract.decimals import scale_of, value_of
from tidemill_contract.functions.base import (
    NUMERIC,
    WITH_STRINGS,
    Function,
    Item,
    Merged,
    Metric,
    Need,
    Parameters,
    PartialKind,
    StoredColumn,
    always,
)

DEFAULT_K = 10


def _behind(column: StoredColumn, old: str, new: str) -> str:
    a, b = f"{old}.{column.quoted}", f"{new}.{column.quoted}"
    return f"coalesce({a} || {b}, {a}, {b})"


def _all(column: StoredColumn) -> str:
    return f"string_agg({column.quoted}, ''::bytea)"


def _of(name: str) -> PartialKind:
    return PartialKind(name=name, sql_type=always("bytea"), merge=_behind, rollup=_all, sketch=True)


QUANTILES, UNIQUES, FREQUENT = _of("quantiles"), _of("uniques"), _of("frequent")
KINDS = (QUANTILES, UNIQUES, FREQUENT)


class QuantileParameters(Parameters):
    """The parameter of `quantile`."""

    remedies: ClassVar[Mapping[str, str]] = {"q": "add a number between 0 and 1, such as q: 0.95"}

    q: float = Field(gt=0, lt=1, description="The quantile, above 0 and below 1. For 0 and 1, use min and max.")


class Quantile(Function):
    """The smallest value whose rank is at least `q`."""

    name = "quantile"
    value = (
        "the smallest value with a rank of at least `q`; `q` is above 0 and below 1 (for 0 and 1 use `min` and `max`);"
        " a sketch"
    )
    error = "a rank error of 0.7 %; exact up to 400 values"
    takes = NUMERIC
    parameters: ClassVar[type[Parameters]] = QuantileParameters
    example: ClassVar[Mapping[str, Any]] = {"q": 0.95}
    kinds = (QUANTILES,)

    def answer(self, merged: Merged) -> str:
        """Return the sketch's column."""
        return merged.columns["quantiles"]

    def answer_type(self, field_type: str | None) -> str:
        """Return the quantile's type."""
        return "number" if scale_of(field_type) is None else str(field_type)

    def decoder(self, metric: Metric, field_type: str | None) -> Callable[[bytes | None], Any]:
        """Return the quantile's decoder."""
        return _reader(QuantileParameters.of(metric).q, field_type)


class Median(Quantile):
    """The median: the quantile 0.5."""

    name = "median"
    value = "`quantile` with `q: 0.5`"
    parameters = Parameters
    example: ClassVar[Mapping[str, Any]] = {}

    def decoder(self, metric: Metric, field_type: str | None) -> Callable[[bytes | None], Any]:
        """Return the median's decoder."""
        return _reader(0.5, field_type)


def _reader(q: float, field_type: str | None) -> Callable[[bytes | None], Any]:
    from tidemill_contract.functions import sketches

    read, scale = sketches.quantile_reader(q), scale_of(field_type)
    if scale is None:
        return read

    def decimal(stored: bytes | None) -> Decimal | None:
        value = read(stored)
        return None if value is None else value_of(int(value), scale)

    return decimal


class Distinct(Function):
    """The number of different values."""

    name = "distinct"
    value = "the number of different values; a sketch"
    error = "2.3 % (two standard errors); exact for a few hundred values"
    takes = WITH_STRINGS
    kinds = (UNIQUES,)
    zero_filled = True

    def answer(self, merged: Merged) -> str:
        """Return the sketch's column."""
        return merged.columns["uniques"]

    def answer_type(self, field_type: str | None) -> str:
        """Return `integer`."""
        return "integer"

    def answer_range(self, field_type: str | None) -> tuple[float, float]:
        """Return 0 and infinity."""
        return 0.0, math.inf

    def decoder(self, metric: Metric, field_type: str | None) -> Callable[[bytes | None], Any]:
        """Return the estimate's decoder."""
        from tidemill_contract.functions import sketches

        return sketches.read_distinct


class TopKParameters(Parameters):
    """The parameter of `topk`."""

    k: int = Field(DEFAULT_K, ge=1, le=100, description=f"Maximum number of values in the list. Default: {DEFAULT_K}.")


class TopK(Function):
    """The most frequent values."""

    name = "topk"
    value = f"the `k` most frequent values (1 to 100, default {DEFAULT_K}); a sketch"
    error = "0.7 % of the values counted; exact up to 384 different values"
    takes = WITH_STRINGS
    parameters = TopKParameters
    example: ClassVar[Mapping[str, Any]] = {"k": 5}
    kinds = (FREQUENT,)
    item = Item(
        "FrequentValue",
        "An item of a topk metric. The value occurred at least `count - error` and at most `count` times.",
        {
            "value": {"description": "A value of the field's type."},
            "count": {"type": "integer"},
            "error": {"type": "integer"},
        },
    )

    def needs(self, metric: Metric) -> tuple[Need, ...]:
        """Return the sketch's column."""
        return (Need(FREQUENT, metric.field, listed=TopKParameters.of(metric).k),)

    def answer(self, merged: Merged) -> str:
        """Return the sketch's column."""
        return merged.columns["frequent"]

    def answer_type(self, field_type: str | None) -> str:
        """Return `array`."""
        return "array"

    def decoder(self, metric: Metric, field_type: str | None) -> Callable[[bytes | None], Any]:
        """Return the list's decoder."""
        from tidemill_contract.functions import sketches

        return sketches.lister(TopKParameters.of(metric).k, field_type)


FUNCTIONS = (Quantile(), Median(), Distinct(), TopK())
