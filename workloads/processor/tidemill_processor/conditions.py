"""Columns for metrics with a condition (`where`)."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from tidemill_contract.expressions.compiler import column_names, compile_condition
from tidemill_contract.functions.partials import condition_columns
from tidemill_contract.resource.spec import PipelineSpec


def conditional_columns(spec: PipelineSpec, types: Mapping[str, str]) -> tuple[pl.Expr, ...]:
    """Return the columns for a pipeline's conditions, without duplicates."""
    expressions: dict[str, pl.Expr] = {}
    for metric in (metric for aggregation in spec.aggregations for metric in aggregation.metrics):
        for column in condition_columns(metric):
            if metric.where is not None and column.flag_column not in expressions:
                fulfilled = pl.when(compile_condition(metric.where, types)).then(pl.lit(True))
                expressions[column.flag_column] = fulfilled.alias(column.flag_column)
            if column.field is not None:
                expressions[column.column] = (
                    pl.when(pl.col(column.flag_column)).then(pl.col(column.field)).alias(column.column)
                )
    return tuple(expressions.values())


def condition_fields(spec: PipelineSpec) -> set[str]:
    """Return the fields and derived fields that the conditions of metrics read."""
    wheres = {metric.where for aggregation in spec.aggregations for metric in aggregation.metrics if metric.where}
    return {name for where in wheres for name in column_names(where)}
