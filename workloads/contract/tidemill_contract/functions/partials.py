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
from tidemill_contract.expressions.normal import normal_form
from tidemill_contract.functions import variance_sql
from tidemill_contract.functions.base import EXACT_INTEGERS, SQL_TYPES, Metric, Need
from tidemill_contract.functions.bookkeeping import REVISION
from tidemill_contract.functions.composed import composed_type, is_composed
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
    "Conditional",
    "Kind",
    "Partial",
    "column_of",
    "columns_by_kind",
    "conditionals",
    "field_types",
    "fields_of",
    "kept_in_order",
    "layout",
    "merge_expression",
    "needed_columns",
    "needed_partials",
    "own_partial",
    "quote",
    "rollup_select",
    "whole_partial",
]

if TYPE_CHECKING:
    Kind = str
else:
    Kind = Literal[(*KINDS, *variance_sql.SCRATCH)]
    """The kind of a stored column. The column's name begins with `_` and the kind."""

_MAX_LABEL = 46
"""The maximum size (bytes) of the label in a name `_<kind>_<label>`. Postgres limits names to 63 bytes."""
_NUMBERS: Mapping[str, str] = defaultdict(lambda: "number")
"""Placeholder types of fields, for callers that need only the names of columns."""
SKETCHES = frozenset(name for name, kind in KINDS.items() if kind.sketch)
ORDERED_KINDS = frozenset(name for name, kind in KINDS.items() if kind.ordered)


def quote(identifier: str) -> str:
    """Return a validated SQL identifier in double quotes."""
    if '"' in identifier or "\0" in identifier:
        raise ValueError(f"not an identifier: {identifier!r}")
    return f'"{identifier}"'


@lru_cache(maxsize=4096)
def column_of(kind: Kind, field: str) -> str:
    """Return the unquoted column name `_<kind>_<field>` for a kind and a field.

    Two underscores precede the field if the name could be read with a longer kind. For example, `_last_at_home` could
    have the kind `last_at`, so the column's name is `_last__at_home`.
    """
    plain = f"_{kind}_{field}"
    ambiguous = any(
        len(other) > len(kind) and plain.startswith(f"_{other}_") for other in (*KINDS, *variance_sql.SCRATCH)
    )
    return f"_{kind}__{field}" if ambiguous else plain


@dataclass(frozen=True)
class Conditional:
    """A data frame column for a condition: the field's values where the condition is true, else null.

    Attributes:
        where: the condition in its normal form.
        field: the field, or None for the column with the name `condition`.
    """

    where: str
    field: str | None

    @property
    def condition(self) -> str:
        """The name of a boolean column. If a row satisfies `where`, the column is true, otherwise null."""
        return f"?{hashlib.sha256(self.where.encode()).hexdigest()[:16]}"

    @property
    def column(self) -> str:
        """The column's name in the data frame."""
        return f"{self.field or ''}{self.condition}"


@dataclass(frozen=True)
class Partial:
    """One stored column of partial results.

    Attributes:
        listed: the maximum number of values in the list of a `topk` metric, or 0 for other metrics.
        by: the parameter `by` of the metric (`min_by` or `max_by`), or None.
        noted: the name and the type of the field whose values are stored, or None if the metric has no field.
        where: the condition on events that count, or None if all events count.
    """

    kind: Kind
    field: str | None
    sql_type: str
    listed: int = 0
    noted: tuple[str, str] | None = None
    by: str | None = None
    bounds: tuple[float, ...] = ()
    where: str | None = None

    @property
    def column(self) -> str:
        """The column's name, which begins with an underscore, unlike all names in a spec."""
        plain = self.field is None and self.where is None
        return f"_{self.kind}" if plain else column_of(self.kind, self._label)

    @property
    def source(self) -> str:
        """The data frame column from which this partial is computed. Requires a field or a condition."""
        return str(self.field) if self.where is None else Conditional(self.where, self.field).column

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
        return quote(column_of(kind, self._label))


def own_partial(kind: Literal["min", "max"], name: str, sql_type: str) -> Partial:
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
        whole: the name of each metric that may lack events in some rows, and an SQL condition. The condition is true
            in rows that count all events of the metric.
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
    whole: tuple[tuple[str, str], ...] = ()

    @property
    def sessions(self) -> bool:
        """Whether the windows are sessions."""
        return self.gap_ms is not None

    @property
    def hopping(self) -> bool:
        """Whether a window consists of several stored panes."""
        return self.panes > 1

    @property
    def spread_ms(self) -> int:
        """The maximum time from a window's start to the start of the window's last pane."""
        return self.size_ms - self.pane_ms if self.hopping else 0

    @property
    def reach_ms(self) -> int:
        """For sessions, the maximum time from a session's start to its end. For other windows, `spread_ms`."""
        return self.size_ms if self.sessions else self.spread_ms

    @property
    def end_sql(self) -> str:
        """SQL for a window's end. Only sessions store the end, in the column `window_end`."""
        return "window_end" if self.sessions else grid_sql(self.grid).shift("window_start", self.panes)

    def end_of(self, start_ms: int) -> int:
        """Return the end of the window that starts at a time. Sessions are not supported."""
        return self.grid.shift(start_ms, self.panes)

    def last_start(self, end_ms: int) -> int:
        """Return the start of the last window that ends at or before a time. Sessions are not supported."""
        return self.grid.shift(self.grid.start_of(end_ms), -self.panes)

    def shut(self, closed_until: int | None) -> int | None:
        """Return a time (epoch ms). Windows up to this time can no longer change. If no window is closed, return None.

        Args:
            closed_until: windows are closed up to this time (epoch ms). If no window is closed, None.
        """
        return closed_until if closed_until is None or self.reopen_ms is None else closed_until - self.reopen_ms

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The unquoted columns of the unique key.

        If windows have several panes, late events are stored in separate rows, with a different `_after`.
        """
        after = ("_after",) if self.hopping else ()
        return (*(name for name, _ in self.group_by), "window_start", *after)

    @property
    def merged(self) -> tuple[Partial, ...]:
        """The columns for a query to merge: the partials, and the completeness of each metric in `whole`."""
        return (*self.partials, *(whole_partial(metric) for metric, _ in self.whole))

    @property
    def stored(self) -> list[str]:
        """The SQL of the columns in `merged`, for a SELECT from the window table."""
        whole_columns = [f"{condition} AS {quote(whole_partial(metric).column)}" for metric, condition in self.whole]
        return [*(quote(p.column) for p in self.partials), *whole_columns]


def whole_partial(metric: str) -> Partial:
    """Return a boolean column. If the rows of a window contain all events of a metric, the column is true."""
    return Partial("whole", metric, "boolean")


def field_types(spec: PipelineSpec, derived: Mapping[str, str]) -> dict[str, str]:
    """Return the types of all fields, lookup fields and derives, by name.

    `derived` comes from `expressions.derived_types`.
    """
    return spec.field_kinds | dict(derived)


def layout(aggregation: AggregationSpec, types: Mapping[str, str]) -> AggregationLayout:
    """Return the layout of a validated aggregation."""
    partials: dict[str, Partial] = {"_count": Partial("count", None, "bigint")}
    metrics = _typed(aggregation.metrics, types)
    for metric in aggregation.metrics:
        for partial in needed_partials(metric, types):
            existing = partials.setdefault(partial.column, partial)
            if existing.listed < partial.listed:
                partials[partial.column] = partial
    reopens = aggregation.late_policy == "reopen"
    if reopens:
        partials[REVISION] = Partial("revision", None, "bigint")
    cut = aggregation.window.cut
    return AggregationLayout(
        name=aggregation.name,
        group_by=tuple((name, types[name]) for name in aggregation.group_by),
        partials=tuple(partials.values()),
        metrics=tuple(metrics),
        size_ms=cut.size_ms,
        pane_ms=cut.pane_ms,
        grace_ms=parse_ms(aggregation.window.grace),
        grid=cut.grid,
        panes=cut.rows,
        gap_ms=cut.gap_ms,
        reopen_ms=parse_ms(aggregation.retention) if reopens else None,
    )


def _typed(metrics: Sequence[MetricSpec], types: Mapping[str, str]) -> list[tuple[MetricSpec, str | None]]:
    by_name = {metric.name: metric for metric in metrics}
    fields = {metric.name: types[metric.field] if metric.field else None for metric in metrics}
    answered = {
        metric.name: FUNCTIONS[metric.function].answer_type(fields[metric.name])
        for metric in metrics
        if not is_composed(metric)
    }
    for metric in metrics:
        if is_composed(metric):
            fields[metric.name] = composed_type(by_name, answered, metric.name)
    return [(metric, fields[metric.name]) for metric in metrics]


def needed_partials(metric: Metric, types: Mapping[str, str]) -> list[Partial]:
    """Return the stored columns that a metric needs. `types` contains the type of each field by name."""
    return [_partial(need, types) for need in _needs(metric)]


def _needs(metric: Metric) -> tuple[Need, ...]:
    if is_composed(metric):
        return ()
    needs = FUNCTIONS[metric.function].needs(metric)
    if metric.where is None:
        return needs
    where = normal_form(metric.where)
    return tuple(replace(need, where=where) for need in needs)


def _partial(need: Need, types: Mapping[str, str]) -> Partial:
    source = need.source or need.field
    noted = None if source is None else (source, types[source])
    sql_type = need.kind.sql_type(noted[1] if noted else "")
    return Partial(need.kind.name, need.field, sql_type, need.listed, noted, need.by, need.bounds, need.where)


def needed_columns(metric: Metric) -> list[str]:
    """Return the names of the stored columns without which a metric has no result."""
    return [p.column for p in needed_partials(metric, _NUMBERS) if not KINDS[p.kind].refining]


def kept_in_order(metric: Metric) -> bool:
    """Return whether processors must read events in the order of event time to fill a metric's columns."""
    return any(p.kind in ORDERED_KINDS for p in needed_partials(metric, _NUMBERS))


def fields_of(metric: Metric) -> set[str]:
    """Return the fields that a metric reads."""
    return {field for need in _needs(metric) for field in (need.field, need.by) if field is not None}


def conditionals(metric: Metric) -> set[Conditional]:
    """Return the data frame columns that a metric with a condition needs."""
    return {Conditional(need.where, need.field) for need in _needs(metric) if need.where is not None}


def columns_by_kind(metric: Metric) -> dict[str, str]:
    """Return the quoted columns that a metric needs, by kind."""
    return {p.kind: p.quoted for p in needed_partials(metric, _NUMBERS)}


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
    rows = variance_sql.prepared([p.sibling for p in partials if p.kind == "mean"], source, selected, names)
    outer = ", ".join([*names, *(f"{KINDS[p.kind].rollup(p)} AS {quote(p.column)}" for p in partials)])
    group = f" GROUP BY {', '.join(names)}" if names else ""
    return f"SELECT {outer} FROM {rows}{group}"
