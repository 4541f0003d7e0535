"""Functions that store a sketch: quantiles, distinct counts and top k."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, ClassVar

from pydantic import Field

from tidemill_contract.decimals import scale_of, value_of
from tidemill_contract.functions.base import (
    ALL_TYPES_AND_STRINGS,
    NUMERIC,
    ColumnNeed,
    Function,
    Item,
    MergedColumns,
    Metric,
    Parameters,
    PartialKind,
    StoredColumn,
    fixed_type,
)

DEFAULT_K = 10


def _merge_bytes(column: StoredColumn, old: str, new: str) -> str:
    a, b = f"{old}.{column.quoted}", f"{new}.{column.quoted}"
    return f"coalesce({a} || {b}, {a}, {b})"


def _rollup_bytes(column: StoredColumn) -> str:
    return f"string_agg({column.quoted}, ''::bytea)"


def _sketch_kind(name: str) -> PartialKind:
    return PartialKind(name=name, sql_type=fixed_type("bytea"), merge=_merge_bytes, rollup=_rollup_bytes, sketch=True)


QUANTILES, UNIQUES, FREQUENT = _sketch_kind("quantiles"), _sketch_kind("uniques"), _sketch_kind("frequent")
KINDS = (QUANTILES, UNIQUES, FREQUENT)


class QuantileParameters(Parameters):
    """The parameter of `quantile`."""

    remedies: ClassVar[Mapping[str, str]] = {"q": "add a number between 0 and 1, such as q: 0.95"}

    q: float = Field(gt=0, lt=1, description="The quantile, above 0 and below 1. For 0 and 1, use min and max.")


class Quantile(Function):
    """The smallest value whose rank is at least `q`."""

    name = "quantile"
    description = (
        "the smallest value with a rank of at least `q`; `q` is above 0 and below 1 (for 0 and 1 use `min` and `max`);"
        " a sketch"
    )
    accuracy = "a rank error of 0.7 %; exact up to 400 values"
    field_types = NUMERIC
    parameters: ClassVar[type[Parameters]] = QuantileParameters
    example: ClassVar[Mapping[str, Any]] = {"q": 0.95}
    kinds = (QUANTILES,)

    def answer_sql(self, merged: MergedColumns) -> str:
        """Return the sketch's column."""
        return merged.columns["quantiles"]

    def answer_type(self, field_type: str | None) -> str:
        """Return the quantile's type."""
        return "number" if scale_of(field_type) is None else str(field_type)

    def decoder(self, metric: Metric, field_type: str | None) -> Callable[[bytes | None], Any]:
        """Return the quantile's decoder."""
        return _quantile_decoder(QuantileParameters.of(metric).q, field_type)


class Median(Quantile):
    """The median: the quantile 0.5."""

    name = "median"
    description = "`quantile` with `q: 0.5`"
    parameters = Parameters
    example: ClassVar[Mapping[str, Any]] = {}

    def decoder(self, metric: Metric, field_type: str | None) -> Callable[[bytes | None], Any]:
        """Return the median's decoder."""
        return _quantile_decoder(0.5, field_type)


def _quantile_decoder(q: float, field_type: str | None) -> Callable[[bytes | None], Any]:
    from tidemill_contract.functions import sketches

    read, scale = sketches.quantile_reader(q), scale_of(field_type)
    if scale is None:
        return read

    def read_decimal(stored: bytes | None) -> Decimal | None:
        value = read(stored)
        return None if value is None else value_of(int(value), scale)

    return read_decimal


class Distinct(Function):
    """The number of different values."""

    name = "distinct"
    description = "the number of different values; a sketch"
    accuracy = "2.3 % (two standard errors); exact for a few hundred values"
    field_types = ALL_TYPES_AND_STRINGS
    kinds = (UNIQUES,)
    zero_filled = True

    def answer_sql(self, merged: MergedColumns) -> str:
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
    description = f"the `k` most frequent values (1 to 100, default {DEFAULT_K}); a sketch"
    accuracy = "0.7 % of the values counted; exact up to 384 different values"
    field_types = ALL_TYPES_AND_STRINGS
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

    def needs(self, metric: Metric) -> tuple[ColumnNeed, ...]:
        """Return the sketch's column."""
        return (ColumnNeed(FREQUENT, metric.field, list_size=TopKParameters.of(metric).k),)

    def answer_sql(self, merged: MergedColumns) -> str:
        """Return the sketch's column."""
        return merged.columns["frequent"]

    def answer_type(self, field_type: str | None) -> str:
        """Return `array`."""
        return "array"

    def decoder(self, metric: Metric, field_type: str | None) -> Callable[[bytes | None], Any]:
        """Return the list's decoder."""
        from tidemill_contract.functions import sketches

        return sketches.top_values_reader(TopKParameters.of(metric).k, field_type)


FUNCTIONS = (Quantile(), Median(), Distinct(), TopK())
