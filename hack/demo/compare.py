"""Compares answers of the REST API with the batch recomputation: exactly, or within 1e-9 for inexact values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import polars as pl

from demo.expected import expected_windows

RELATIVE = 1e-9
# If the variance is zero, one side may have a rounding error instead. The limit is far below any unit of the data.
ABSOLUTE = 1e-9
PAGE_ROWS = 10_000
_SHOWN = 5


@dataclass(frozen=True)
class Page:
    """One page of an answer: its rows, and `closed_until` (RFC 3339) of the same database snapshot."""

    rows: list[dict[str, Any]]
    closed_until: str | None


@dataclass(frozen=True)
class Comparison:
    """The comparison of one aggregation.

    Attributes:
        aggregation: The name of the aggregation.
        windows: The number of expected windows.
        answered: The number of windows that the API returned.
        open_windows: The number of returned windows that were not closed yet.
        values: The number of metric values that were compared.
        wrong: The number of different values, plus the number of windows that only one side has.
        differences: The first few differences as text.
    """

    aggregation: str
    windows: int
    answered: int
    open_windows: int
    values: int
    wrong: int
    differences: tuple[str, ...]


def compare_all(
    client: httpx.Client, base: str, pipeline: str, spec: Mapping[str, Any], raw: pl.DataFrame
) -> Iterator[Comparison]:
    """Compare all aggregations of a pipeline, one after another."""
    for aggregation in spec["aggregations"]:
        answered = fetch_windows(client, base, pipeline, aggregation["name"])
        yield compare(aggregation, expected_windows(spec, aggregation, raw), answered)


def fetch_windows(client: httpx.Client, base: str, pipeline: str, aggregation: str) -> list[Page]:
    """Return all windows of an aggregation, page by page.

    Raises:
        httpx.HTTPError: The API refuses the request or does not answer.
    """
    pages: list[Page] = []
    parameters: dict[str, Any] = {"limit": PAGE_ROWS}
    while True:
        response = client.get(f"{base}/v1/pipelines/{pipeline}/aggregates/{aggregation}", params=parameters)
        response.raise_for_status()
        body = response.json()
        pages.append(Page(body["data"], body["closed_until"]))
        if body["next_cursor"] is None:
            return pages
        parameters = {"limit": PAGE_ROWS, "cursor": body["next_cursor"]}


def compare(aggregation: Mapping[str, Any], expected: pl.DataFrame, pages: list[Page]) -> Comparison:
    """Compare one aggregation's windows with the expected ones.

    Args:
        aggregation: The aggregation in the spec.
        expected: The result of `expected_windows`.
        pages: The pages of the API's answer, in their order.
    """
    rows = [row for page in pages for row in page.rows]
    metrics = {metric["name"]: metric.get("function", "expression") for metric in aggregation["metrics"]}
    answered = _cast_columns(rows, expected.schema)
    keys = [*aggregation.get("groupBy", ()), "window_start"]
    twice = answered.height - answered.select(keys).unique().height
    messages = [f"{twice} windows are answered twice"] if twice else []
    both, wrong, differences = _compare_rows(expected, answered, keys, metrics)
    flags = _closed_flags(pages)
    return Comparison(
        aggregation=str(aggregation["name"]),
        windows=expected.height,
        answered=answered.height,
        open_windows=answered.filter(~pl.col("closed")).height,
        values=both * len(metrics),
        wrong=twice + wrong + len(flags),
        differences=tuple([*flags, *messages, *differences][:_SHOWN]),
    )


def _compare_rows(
    expected: pl.DataFrame, answered: pl.DataFrame, keys: list[str], metrics: Mapping[str, str]
) -> tuple[int, int, list[str]]:
    """Return the number of windows that both sides have, the number of differences, and the first of them as text."""
    wrong, differences = 0, []
    joined = expected.with_columns(_expected=pl.lit(value=True)).join(
        answered.with_columns(_answered=pl.lit(value=True)),
        on=keys,
        how="full",
        coalesce=True,
        nulls_equal=True,
        suffix=" answered",
    )
    one_sided = {"missing": pl.col("_answered").is_null(), "not expected": pl.col("_expected").is_null()}
    for side, condition in one_sided.items():
        rest = joined.filter(condition)
        wrong += rest.height
        differences += [f"{_key(row, keys)}: window {side}" for row in rest.head(_SHOWN).iter_rows(named=True)]
    both = joined.filter(pl.col("_expected") & pl.col("_answered"))
    for name, function in {"window_end": "max", **metrics}.items():
        differing = both.filter(_differs(name, function, expected.schema[name]))
        wrong += differing.height
        differences += [
            f"{_key(row, keys)}: {name} is {row[name + ' answered']!r}, expected {_plain(row[name])}"
            for row in differing.head(_SHOWN).iter_rows(named=True)
        ]
    return both.height, wrong, differences


def _cast_columns(rows: list[dict[str, Any]], wanted: pl.Schema) -> pl.DataFrame:
    """Return the API's rows as a frame with the expected types.

    Types are strict: 1.0 is not an integer, and "1" is not a number.
    """
    columns: dict[str, pl.Series] = {"closed": pl.Series([row["closed"] for row in rows], dtype=pl.Boolean)}
    for name, kind in wanted.items():
        values = [row[name] for row in rows]
        dtype = kind.inner if isinstance(kind, pl.List) and _candidates(kind) else kind
        if isinstance(dtype, pl.Datetime):
            times = pl.Series(values, dtype=pl.String).str.to_datetime(time_zone="UTC", time_unit=dtype.time_unit)
            columns[name] = times
        else:
            if dtype == pl.Float64:
                values = [float(value) if isinstance(value, int) else value for value in values]
            columns[name] = pl.Series(values, dtype=dtype, strict=True)
    return pl.DataFrame(columns)


def _candidates(kind: pl.List) -> bool:
    """Return whether the list contains the correct values (`first`, `last`). For `topk`, the list is the value."""
    return not isinstance(kind.inner, pl.Struct)


def _differs(name: str, function: str, kind: pl.DataType) -> pl.Expr:
    want, got = pl.col(name), pl.col(f"{name} answered")
    if isinstance(kind, pl.List) and _candidates(kind):
        # An empty list of candidates means that there is no value.
        return pl.when(got.is_null()).then(want.list.len() > 0).otherwise(~want.list.contains(got))
    if kind == pl.Float64 and function not in ("min", "max"):
        slack = RELATIVE * pl.max_horizontal(want.abs(), got.abs())
        if function in ("variance", "stddev"):
            slack = pl.max_horizontal(slack, pl.lit(ABSOLUTE))
        return want.is_null().xor(got.is_null()) | ((want - got).abs() > slack).fill_null(value=False)
    return want.ne_missing(got)


def _closed_flags(pages: list[Page]) -> list[str]:
    """Return the faults of `closed` and `closed_until`.

    A window must be closed exactly if it ends by its page's `closed_until`, which must not decrease.
    """
    differences, before = [], ""
    for page in pages:
        until = page.closed_until or ""
        if until < before:
            differences.append(f"closed_until went back from {before} to {until}")
        before = until
        wrong = [row for row in page.rows if row["closed"] != (row["window_end"] <= until)]
        if wrong:
            flag = "closed" if wrong[0]["closed"] else "open"
            differences.append(
                f"a window that ends at {wrong[0]['window_end']} is {flag}, closed_until is {until or 'unset'}"
            )
    return differences


def _key(row: Mapping[str, Any], keys: list[str]) -> str:
    return " ".join(f"{name}={row[name]}" for name in keys)


def _plain(value: Any) -> str:
    if isinstance(value, list) and not any(isinstance(item, dict) for item in value):
        return " or ".join(repr(item) for item in value)
    return repr(value)
