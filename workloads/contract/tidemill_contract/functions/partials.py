"""Partial aggregates (partials): the stored columns of metrics, and the SQL for merging the columns."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from tidemill_contract.calendars import Calendar
from tidemill_contract.duration import parse_ms
from tidemill_contract.expressions.normal_form import normal_form
from tidemill_contract.functions import variance_sql
from tidemill_contract.functions.base import EXACT_INTEGERS, SQL_TYPES, ColumnNeed, Metric
from tidemill_contract.functions.composed import composed_type, is_composed
from tidemill_contract.functions.internal_columns import REVISION
from tidemill_contract.functions.registry import FUNCTIONS, KINDS
from tidemill_contract.grids import Steps, grid_sql
from tidemill_contract.resource.kinds.metrics import MetricSpec
from tidemill_contract.resource.spec import AggregationSpec, PipelineSpec

__all__ = [
    "EXACT_INTEGERS",
    "ORDERED_KINDS",
    "REVISION",
    "SKETCHES",
    "SQL_TYPES",
    "AggregationLayout",
    "ConditionColumn",
    "Kind",
    "Partial",
    "build_layout",
    "column_name",
    "columns_by_kind",
    "completeness_partial",
    "condition_columns",
    "field_types",
    "fields_of",
    "internal_partial",
    "merge_expression",
    "needed_columns",
    "needed_partials",
    "needs_event_order",
    "quote",
    "rollup_select",
]

if TYPE_CHECKING:
    Kind = str
else:
    Kind = Literal[(*KINDS, *variance_sql.SCRATCH_KINDS)]
    """The kind of a stored column. The column's name begins with `_` and the kind."""

_MAX_LABEL = 46
"""The maximum size (bytes) of the label in a name `_<kind>_<label>`. Postgres limits names to 63 bytes."""
_PLACEHOLDER_TYPES: Mapping[str, str] = defaultdict(lambda: "number")
"""Placeholder types of fields, for callers that need only the names of columns."""
SKETCHES = frozenset(name for name, kind in KINDS.items() if kind.sketch)
ORDERED_KINDS = frozenset(name for name, kind in KINDS.items() if kind.needs_order)


def quote(identifier: str) -> str:
    """Return a validated SQL identifier in double quotes."""
    if '"' in identifier or "\0" in identifier:
        raise ValueError(f"not an identifier: {identifier!r}")
    return f'"{identifier}"'


@lru_cache(maxsize=4096)
def column_name(kind: Kind, field: str) -> str:
    """Return the unquoted column name `_<kind>_<field>` for a kind and a field.

    Two underscores precede the field if the name could be read with a longer kind. For example, `_last_at_home` could
    have the kind `last_at`, so the column's name is `_last__at_home`.
    """
    plain = f"_{kind}_{field}"
    ambiguous = any(
        len(other) > len(kind) and plain.startswith(f"_{other}_") for other in (*KINDS, *variance_sql.SCRATCH_KINDS)
    )
    return f"_{kind}__{field}" if ambiguous else plain


@dataclass(frozen=True)
class ConditionColumn:
    """A data frame column for a condition: the field's values where the condition is true, else null.

    Attributes:
        where: the condition in its normal form.
        field: the field, or None for the column `flag_column`.
    """

    where: str
    field: str | None

    @property
    def flag_column(self) -> str:
        """The name of a boolean column. If a row satisfies `where`, the column is true, otherwise null."""
        return f"?{hashlib.sha256(self.where.encode()).hexdigest()[:16]}"

    @property
    def column(self) -> str:
        """The column's name in the data frame."""
        return f"{self.field or ''}{self.flag_column}"


@dataclass(frozen=True)
class Partial:
    """One stored column of partial results.

    Attributes:
        list_size: the maximum number of values in the list of a `topk` metric, or 0 for other metrics.
        by: the parameter `by` of the metric (`min_by` or `max_by`), or None.
        source_field: the name and the type of the field whose values are stored, or None if the metric has no field.
        where: the condition on events that count, or None if all events count.
    """

    kind: Kind
    field: str | None
    sql_type: str
    list_size: int = 0
    source_field: tuple[str, str] | None = None
    by: str | None = None
    bounds: tuple[float, ...] = ()
    where: str | None = None

    @property
    def column(self) -> str:
        """The column's name, which begins with an underscore, unlike all names in a spec."""
        plain = self.field is None and self.where is None
        return f"_{self.kind}" if plain else column_name(self.kind, self._label)

    @property
    def source(self) -> str:
        """The data frame column from which this partial is computed. Requires a field or a condition."""
        return str(self.field) if self.where is None else ConditionColumn(self.where, self.field).column

    @property
    def _label(self) -> str:
        field = self.field or ""
        if self.by is None and not self.bounds and self.where is None:
            return field
        label = f"{field}.{self.by}"
        if self.bounds or self.where is not None or len(label) > _MAX_LABEL:
            parts = (field, self.by, self.bounds) if self.where is None else (field, self.by, self.bounds, self.where)
            digest = hashlib.sha256(repr(parts).encode()).hexdigest()
            label = f"{field[: _MAX_LABEL - 17]}.{digest[:16]}"
        return label

    @property
    def quoted(self) -> str:
        """The column's name in double quotes."""
        return quote(self.column)

    def sibling(self, kind: Kind) -> str:
        """Return the quoted name of the column of another kind for the same field."""
        return quote(column_name(kind, self._label))


def internal_partial(kind: Literal["min", "max"], name: str, sql_type: str) -> Partial:
    """Return a stored column for internal use. The name differs from the column names of all metrics."""
    return Partial(kind, f"0{name}", sql_type)


@dataclass(frozen=True)
class AggregationLayout:
    """The columns of an aggregation's window table, and the lengths of its windows.

    Attributes:
        metrics: the spec's metrics, each with the type of its field or of its expression.
        size_ms: the length of a window, or the maximum length for sessions and calendar windows.
        pane_ms: the length of a pane (the period of a stored row), or the minimum length for calendar windows.
        gap_ms: the time without events after which a session ends, or None for other windows.
        reopen_ms: how long late events can change a closed window, or None if closed windows do not change.
        completeness: the name of each metric that may lack events in some rows, and an SQL condition that is true in
            rows with all events of the metric.
    """

    name: str
    group_by: tuple[tuple[str, str], ...]
    partials: tuple[Partial, ...]
    metrics: tuple[tuple[MetricSpec, str | None], ...]
    size_ms: int
    pane_ms: int
    grace_ms: int
    grid: Steps | Calendar
    panes: int = 1
    gap_ms: int | None = None
    reopen_ms: int | None = None
    completeness: tuple[tuple[str, str], ...] = ()

    @property
    def has_sessions(self) -> bool:
        """Whether the windows are sessions."""
        return self.gap_ms is not None

    @property
    def is_hopping(self) -> bool:
        """Whether a window consists of several stored panes."""
        return self.panes > 1

    @property
    def last_pane_offset_ms(self) -> int:
        """The maximum time from a window's start to the start of the window's last pane."""
        return self.size_ms - self.pane_ms if self.is_hopping else 0

    @property
    def max_lookback_ms(self) -> int:
        """For sessions, the maximum time from a session's start to its end. For others, `last_pane_offset_ms`."""
        return self.size_ms if self.has_sessions else self.last_pane_offset_ms

    @property
    def end_sql(self) -> str:
        """SQL for a window's end. Only sessions store the end, in the column `window_end`."""
        return "window_end" if self.has_sessions else grid_sql(self.grid).shift("window_start", self.panes)

    def end_of(self, start_ms: int) -> int:
        """Return the end of the window that starts at a time. Sessions are not supported."""
        return self.grid.shift(start_ms, self.panes)

    def last_start(self, end_ms: int) -> int:
        """Return the start of the last window that ends at or before a time. Sessions are not supported."""
        return self.grid.shift(self.grid.start_of(end_ms), -self.panes)

    def final_until(self, closed_until: int | None) -> int | None:
        """Return the time (epoch ms) up to which windows can no longer change, or None if no window is closed.

        Args:
            closed_until: the time (epoch ms) up to which windows are closed, or None if no window is closed.
        """
        return closed_until if closed_until is None or self.reopen_ms is None else closed_until - self.reopen_ms

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The unquoted columns of the unique key.

        If windows have several panes, late events are stored in separate rows, with a different `_after`.
        """
        after = ("_after",) if self.is_hopping else ()
        return (*(name for name, _ in self.group_by), "window_start", *after)

    @property
    def merge_columns(self) -> tuple[Partial, ...]:
        """The columns for a query to merge: the partials, and a column for each metric in `completeness`."""
        return (*self.partials, *(completeness_partial(metric) for metric, _ in self.completeness))

    @property
    def select_columns(self) -> list[str]:
        """The SQL of `merge_columns`, for a SELECT from the window table."""
        completeness_columns = [
            f"{condition} AS {quote(completeness_partial(metric).column)}" for metric, condition in self.completeness
        ]
        return [*(quote(p.column) for p in self.partials), *completeness_columns]


def completeness_partial(metric: str) -> Partial:
    """Return a boolean column. If the rows of a window contain all events of a metric, the column is true."""
    return Partial("whole", metric, "boolean")


def field_types(spec: PipelineSpec, derived: Mapping[str, str]) -> dict[str, str]:
    """Return the types of all fields, lookup fields and derives, by name.

    `derived` comes from `expressions.derived_types`.
    """
    return spec.field_kinds | dict(derived)


def build_layout(aggregation: AggregationSpec, types: Mapping[str, str]) -> AggregationLayout:
    """Return the layout of a validated aggregation."""
    partials: dict[str, Partial] = {"_count": Partial("count", None, "bigint")}
    metrics = _with_types(aggregation.metrics, types)
    for metric in aggregation.metrics:
        for partial in needed_partials(metric, types):
            existing = partials.setdefault(partial.column, partial)
            if existing.list_size < partial.list_size:
                partials[partial.column] = partial
    reopens = aggregation.late_policy == "reopen"
    if reopens:
        partials[REVISION] = Partial("revision", None, "bigint")
    storage = aggregation.window.storage
    return AggregationLayout(
        name=aggregation.name,
        group_by=tuple((name, types[name]) for name in aggregation.group_by),
        partials=tuple(partials.values()),
        metrics=tuple(metrics),
        size_ms=storage.size_ms,
        pane_ms=storage.pane_ms,
        grace_ms=parse_ms(aggregation.window.grace),
        grid=storage.grid,
        panes=storage.rows,
        gap_ms=storage.gap_ms,
        reopen_ms=parse_ms(aggregation.retention) if reopens else None,
    )


def _with_types(metrics: Sequence[MetricSpec], types: Mapping[str, str]) -> list[tuple[MetricSpec, str | None]]:
    by_name = {metric.name: metric for metric in metrics}
    input_types = {metric.name: types[metric.field] if metric.field else None for metric in metrics}
    answer_types = {
        metric.name: FUNCTIONS[metric.function].answer_type(input_types[metric.name])
        for metric in metrics
        if not is_composed(metric)
    }
    for metric in metrics:
        if is_composed(metric):
            input_types[metric.name] = composed_type(by_name, answer_types, metric.name)
    return [(metric, input_types[metric.name]) for metric in metrics]


def needed_partials(metric: Metric, types: Mapping[str, str]) -> list[Partial]:
    """Return the stored columns that a metric needs. `types` contains the type of each field by name."""
    return [_partial(need, types) for need in _needs(metric)]


def _needs(metric: Metric) -> tuple[ColumnNeed, ...]:
    if is_composed(metric):
        return ()
    needs = FUNCTIONS[metric.function].needs(metric)
    if metric.where is None:
        return needs
    where = normal_form(metric.where)
    return tuple(replace(need, where=where) for need in needs)


def _partial(need: ColumnNeed, types: Mapping[str, str]) -> Partial:
    source_name = need.source or need.field
    source_field = None if source_name is None else (source_name, types[source_name])
    sql_type = need.kind.sql_type(source_field[1] if source_field else "")
    return Partial(need.kind.name, need.field, sql_type, need.list_size, source_field, need.by, need.bounds, need.where)


def needed_columns(metric: Metric) -> list[str]:
    """Return the names of the stored columns without which a metric has no result."""
    return [p.column for p in needed_partials(metric, _PLACEHOLDER_TYPES) if not KINDS[p.kind].optional]


def needs_event_order(metric: Metric) -> bool:
    """Return whether processors must read events in the order of event time to fill a metric's columns."""
    return any(p.kind in ORDERED_KINDS for p in needed_partials(metric, _PLACEHOLDER_TYPES))


def fields_of(metric: Metric) -> set[str]:
    """Return the fields that a metric reads."""
    return {field for need in _needs(metric) for field in (need.field, need.by) if field is not None}


def condition_columns(metric: Metric) -> set[ConditionColumn]:
    """Return the data frame columns that a metric with a condition needs."""
    return {ConditionColumn(need.where, need.field) for need in _needs(metric) if need.where is not None}


def columns_by_kind(metric: Metric) -> dict[str, str]:
    """Return the quoted columns that a metric needs, by kind."""
    return {p.kind: p.quoted for p in needed_partials(metric, _PLACEHOLDER_TYPES)}


def merge_expression(partial: Partial, old: str = "t", new: str = "EXCLUDED") -> str:
    """Return SQL that merges the values of a column in the rows `old` and `new`."""
    return KINDS[partial.kind].merge(partial, old, new)


def rollup_select(partials: Sequence[Partial], source: str, keys: Sequence[tuple[str, str]]) -> str:
    """Return a SELECT that merges the stored rows with the same key into one row.

    Args:
        partials: the columns to merge.
        source: a FROM item (table or parenthesised query with an alias) that has the columns of the partials.
        keys: the keys, as pairs of SQL expression and output name. Without keys, the result is a single row.

    Returns:
        A SELECT of the keys, followed by the partials.
    """
    names = [quote(name) for _, name in keys]
    selected = [f"{expression} AS {name}" for (expression, _), name in zip(keys, names, strict=True)]
    selected += [quote(p.column) for p in partials]
    rows = variance_sql.prepared_rows([p.sibling for p in partials if p.kind == "mean"], source, selected, names)
    outer = ", ".join([*names, *(f"{KINDS[p.kind].rollup(p)} AS {quote(p.column)}" for p in partials)])
    group = f" GROUP BY {', '.join(names)}" if names else ""
    return f"SELECT {outer} FROM {rows}{group}"
