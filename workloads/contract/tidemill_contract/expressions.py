"""Filter and derive expressions: their types and their compilation to vectorised polars expressions."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from tidemill_contract.spec import PipelineSpec

POLARS_TYPES: dict[str, pl.DataType] = {
    "string": pl.String(),
    "integer": pl.Int64(),
    "number": pl.Float64(),
    "boolean": pl.Boolean(),
    "timestamp": pl.Datetime("ms", "UTC"),
}


class ExpressionError(ValueError):
    """An expression cannot be used; the text says why and what to do."""


def _spec_type(dtype: pl.DataType) -> str:
    if dtype.is_integer():
        return "integer"
    if dtype.is_float() or dtype.is_decimal():
        return "number"
    for name, canonical in POLARS_TYPES.items():
        if dtype == canonical:
            return name
    raise ExpressionError(f"gives {dtype}, which no field can hold")


@dataclass(frozen=True)
class Transform:
    """A pipeline's derives and filter, compiled."""

    derives: tuple[tuple[str, str, pl.Expr], ...]
    condition: pl.Expr | None

    def apply(self, frame: pl.DataFrame) -> pl.DataFrame:
        """`frame` with the derived columns added in order, and only the rows for which the filter is true."""
        for _name, _kind, expression in self.derives:
            frame = frame.with_columns(expression)
        return frame if self.condition is None else frame.filter(self.condition)


def compile_transform(spec: PipelineSpec) -> Transform:
    """Compile a pipeline's transform.

    Raises:
        ExpressionError: an expression is not valid.
    """
    schema: dict[str, pl.DataType] = {f.name: POLARS_TYPES[f.type] for f in spec.source.fields}
    derives = []
    for derive in spec.transform.derive:
        raw = pl.sql_expr(derive.expression)
        kind = _spec_type(pl.LazyFrame(schema=schema).select(raw.alias("r")).collect_schema()["r"])
        canonical = POLARS_TYPES[kind]
        result = raw.cast(canonical)
        if kind == "number":
            result = pl.when(result.is_finite()).then(result)
        derives.append((derive.name, kind, result.alias(derive.name)))
        schema[derive.name] = canonical
    condition = pl.sql_expr(spec.transform.filter) if spec.transform.filter else None
    return Transform(tuple(derives), condition)


def derived_types(spec: PipelineSpec) -> dict[str, str]:
    """The spec type of each derive, by name.

    Raises:
        ExpressionError: an expression is not valid.
    """
    return {name: kind for name, kind, _ in compile_transform(spec).derives}
