"""Mergeable partial aggregates: which columns a metric needs, how two rows merge, how rows roll up.

One algebra for all: the operator makes the columns, the processor fills and merges them, the API rolls them up. SQL
text only, no database: every identifier is a validated name in double quotes.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from tidemill_contract.duration import parse_ms
from tidemill_contract.expressions.normal import normal_form
from tidemill_contract.functions import spread
from tidemill_contract.functions.base import EXACT_INTEGERS, SQL_TYPES, Metric, Need
from tidemill_contract.functions.bookkeeping import REVISION
from tidemill_contract.functions.composed import composed_type, is_composed
from tidemill_contract.functions.registry import FUNCTIONS, KINDS
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
    Kind = Literal[(*KINDS, *spread.SCRATCH)]
    """First part of a column's name."""

_MAX_LABEL = 46
"""Bytes of a column's name beside its kind: Postgres takes 63 in all."""
_NUMBERS: Mapping[str, str] = defaultdict(lambda: "number")
"""Types of fields where only names are asked for."""
SKETCHES = frozenset(name for name, kind in KINDS.items() if kind.sketch)
ORDERED_KINDS = frozenset(name for name, kind in KINDS.items() if kind.ordered)


def quote(identifier: str) -> str:
    """A quoted SQL identifier. Names are validated before they come here; a double quote would be a defect."""
    if '"' in identifier or "\0" in identifier:
        raise ValueError(f"not an identifier: {identifier!r}")
    return f'"{identifier}"'


@lru_cache(maxsize=4096)
def column_of(kind: Kind, field: str) -> str:
    """The name of the column that holds `kind` of a field, unquoted: another one for every kind and field.

    `_<kind>_<field>`. Where that reads as a longer kind (`last` of `at_home`, `last_at` of `home`), the field is set
    off by one more underscore, with which no field begins: `_last__at_home`.
    """
    plain = f"_{kind}_{field}"
    ambiguous = any(len(other) > len(kind) and plain.startswith(f"_{other}_") for other in (*KINDS, *spread.SCRATCH))
    return f"_{kind}__{field}" if ambiguous else plain


@dataclass(frozen=True)
class Conditional:
    """The values of a field in the events that fulfil a condition, as a column of frames.

    Attributes:
        where: the condition, normalised.
        field: None: the events themselves.
    """

    where: str
    field: str | None

    @property
    def condition(self) -> str:
        """Name of the frame's column that is true where the condition is, else null. No field has a `?` in its name."""
        return f"?{hashlib.sha256(self.where.encode()).hexdigest()[:16]}"

    @property
    def column(self) -> str:
        """Name of the frame's column that has the field's values there, else null."""
        return f"{self.field or ''}{self.condition}"


@dataclass(frozen=True)
class Partial:
    """One stored column of partial results: what it holds (`kind`) of which field.

    Attributes:
        listed: of frequent values, how many are asked for at most.
        by: a second field that the column is told apart by.
        bounds: of counts between bounds, these.
        noted: the field whose values it holds, and its spec type; None: values of no field.
        where: the normalised condition of the events that it is of; None: all events.
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
        """The column's name; spec names cannot start with an underscore, so it collides with none."""
        plain = self.field is None and self.where is None
        return f"_{self.kind}" if plain else column_of(self.kind, self._label)

    @property
    def source(self) -> str:
        """The column of frames that it is computed from, unless it is of all events."""
        return str(self.field) if self.where is None else Conditional(self.where, self.field).column

    @property
    def _label(self) -> str:
        """What the column is told apart by within its kind: no field has a dot in its name."""
        field = self.field or ""
        if self.by is None and not self.bounds and self.where is None:
            return field
        told = f"{field}.{self.by}"
        if self.bounds or self.where is not None or len(told) > _MAX_LABEL:
            parts = (field, self.by, self.bounds) if self.where is None else (field, self.by, self.bounds, self.where)
            digest = hashlib.sha256(repr(parts).encode()).hexdigest()
            told = f"{field[: _MAX_LABEL - 17]}.{digest[:16]}"
        return told

    @property
    def quoted(self) -> str:
        """The column's name as SQL has it."""
        return quote(self.column)

    def sibling(self, kind: Kind) -> str:
        """The quoted column of the same field with another kind."""
        return quote(column_of(kind, self._label))


def own_partial(kind: Literal["min", "max"], name: str, sql_type: str) -> Partial:
    """A partial of our own, merged beside those of fields; no field begins with a digit."""
    return Partial(kind, f"0{name}", sql_type)


@dataclass(frozen=True)
class AggregationLayout:
    """What an aggregation's window table looks like and how its SQL reads.

    Attributes:
        group_by: group columns with their field types, in the spec's order.
        partials: stored partial columns, without repeats; `_count` is always first.
        metrics: the metrics as the spec has them, with the types of their fields; one by expression with its own type.
        size_ms: window length, of sessions the longest; pane_ms: stored row's length (hop for hopping windows, else
            size), of sessions how finely they close.
        gap_ms: the silence that ends a session; None: windows are cut by the clock.
        reopen_ms: how long after its end a closed window still takes late events; None: it takes none. Rows then count
            their reopenings.
        whole: metrics that some rows lack events of, with SQL that tells of a stored row whether it has them all
            (see `feeds`). Only readers have it; such a metric is null where it does not hold for every row.
    """

    name: str
    group_by: tuple[tuple[str, str], ...]
    partials: tuple[Partial, ...]
    metrics: tuple[tuple[MetricSpec, str | None], ...]
    size_ms: int
    pane_ms: int
    grace_ms: int
    gap_ms: int | None = None
    reopen_ms: int | None = None
    whole: tuple[tuple[str, str], ...] = ()

    @property
    def sessions(self) -> bool:
        """Whether windows are as long as activity lasts; rows then have a `window_end`."""
        return self.gap_ms is not None

    @property
    def hopping(self) -> bool:
        """Whether a window is made of several stored panes."""
        return not self.sessions and self.pane_ms != self.size_ms

    @property
    def spread_ms(self) -> int:
        """How long after a window's start the last of its stored rows starts; 0: a window is one row."""
        return 0 if self.sessions else self.size_ms - self.pane_ms

    @property
    def reach_ms(self) -> int:
        """How long before an event the windows that it is in may start, less than a pane."""
        return self.size_ms if self.sessions else self.spread_ms

    @property
    def end_sql(self) -> str:
        """SQL of a window's end, over a row with `window_start` (and, of sessions, `window_end`)."""
        return "window_end" if self.sessions else f"window_start + interval '{self.size_ms} milliseconds'"

    def shut(self, closed_until: int | None) -> int | None:
        """Windows that end by this (epoch ms) take no more events; those that end by `closed_until` are closed."""
        return closed_until if closed_until is None or self.reopen_ms is None else closed_until - self.reopen_ms

    @property
    def key_columns(self) -> tuple[str, ...]:
        """Columns of the unique key, unquoted. `_after` keeps what came late for some windows of a pane apart."""
        after = ("_after",) if self.hopping else ()
        return (*(name for name, _ in self.group_by), "window_start", *after)

    @property
    def merged(self) -> tuple[Partial, ...]:
        """What is merged to answer: the partials, and of some metrics whether they are whole."""
        return (*self.partials, *(whole_partial(metric) for metric, _ in self.whole))

    @property
    def stored(self) -> list[str]:
        """The same of a stored row, as items of a SELECT."""
        told = [f"{condition} AS {quote(whole_partial(metric).column)}" for metric, condition in self.whole]
        return [*(quote(p.column) for p in self.partials), *told]


def whole_partial(metric: str) -> Partial:
    """Whether the rows of a window have all events of a metric, as a column that merges like others."""
    return Partial("whole", metric, "boolean")


def field_types(spec: PipelineSpec, derived: Mapping[str, str]) -> dict[str, str]:
    """Types of all fields and derives by name; `derived` comes from `expressions.derived_types`.

    Those of decimals have their scale.
    """
    return {f.name: f.kind for f in spec.source.fields} | dict(derived)


def layout(aggregation: AggregationSpec, types: Mapping[str, str]) -> AggregationLayout:
    """The layout of a (validated) aggregation."""
    partials: dict[str, Partial] = {"_count": Partial("count", None, "bigint")}
    metrics = _typed(aggregation.metrics, types)
    for metric in aggregation.metrics:
        for partial in needed_partials(metric, types):
            known = partials.setdefault(partial.column, partial)
            if known.listed < partial.listed:
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
        gap_ms=cut.gap_ms,
        reopen_ms=parse_ms(aggregation.retention) if reopens else None,
    )


def _typed(metrics: Sequence[MetricSpec], types: Mapping[str, str]) -> list[tuple[MetricSpec, str | None]]:
    """The metrics with the types of their fields; one by expression with its own type."""
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
    """The stored columns that a metric is made of.

    Args:
        metric: of a validated spec.
        types: the spec type of each field.
    """
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
    """The partial columns that a metric is null without."""
    return [p.column for p in needed_partials(metric, _NUMBERS) if not KINDS[p.kind].refining]


def kept_in_order(metric: Metric) -> bool:
    """Whether a metric's columns are filled from events in the order of their times."""
    return any(p.kind in ORDERED_KINDS for p in needed_partials(metric, _NUMBERS))


def fields_of(metric: Metric) -> set[str]:
    """The fields that a metric is made of."""
    return {field for need in _needs(metric) for field in (need.field, need.by) if field is not None}


def conditionals(metric: Metric) -> set[Conditional]:
    """The conditional columns of frames that a metric is computed from; none if it has no condition."""
    return {Conditional(need.where, need.field) for need in _needs(metric) if need.where is not None}


def columns_by_kind(metric: Metric) -> dict[str, str]:
    """The quoted columns that a metric is made of, by kind."""
    return {p.kind: p.quoted for p in needed_partials(metric, _NUMBERS)}


def merge_expression(partial: Partial, old: str = "t", new: str = "EXCLUDED") -> str:
    """SQL that merges the stored column of row `old` with that of row `new` (aliases), null-safe; it never raises."""
    return KINDS[partial.kind].merge(partial, old, new)


def rollup_select(partials: Sequence[Partial], source: str, keys: Sequence[tuple[str, str]]) -> str:
    """A SELECT that merges many partial rows into one per key; it never raises.

    Args:
        partials: the columns to merge.
        source: a FROM item (table or parenthesised query with an alias) whose columns are the partials.
        keys: (SQL expression over the source, output name) of each key; none: one row in all.

    Returns:
        SQL with the output columns: the keys by name, then every partial by its column name.
    """
    names = [quote(name) for _, name in keys]
    selected = [f"{expression} AS {name}" for (expression, _), name in zip(keys, names, strict=True)]
    selected += [quote(p.column) for p in partials]
    rows = spread.prepared([p.sibling for p in partials if p.kind == "mean"], source, selected, names)
    outer = ", ".join([*names, *(f"{KINDS[p.kind].rollup(p)} AS {quote(p.column)}" for p in partials)])
    group = f" GROUP BY {', '.join(names)}" if names else ""
    return f"SELECT {outer} FROM {rows}{group}"
