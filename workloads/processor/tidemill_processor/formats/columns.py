"""Makes frame columns from the values of decoded fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from tidemill_contract.expressions.values import replace_negative_zero


def as_column(name: str, values: Sequence[Any], dtype: Any) -> pl.Series:
    """Create a column from a field's values, where timestamps are epoch milliseconds."""
    stored = pl.Int64 if isinstance(dtype, pl.Datetime) else dtype
    column = pl.Series(name, values, dtype=stored)
    if dtype == pl.Float64:
        column = replace_negative_zero(column)
    return column.cast(dtype) if stored != dtype else column
