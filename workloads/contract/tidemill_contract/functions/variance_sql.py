"""SQL that merges means and sums of squared deviations (M2).

The formulas are from Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample
variances". A mean is stored as the sum of two doubles, `mean` and `low`. For large values, the rounding error of one
double could be larger than the deviation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tidemill_contract.functions.doubles import INFINITE, divide, sum_aggregate

ColumnNames = Callable[[str], str]
"""A function that returns the quoted name of a field's column of a kind, such as `mean`."""
SCRATCH_KINDS = ("centre", "rest", "delta", "squares")
"""The kinds of columns that exist only within a statement (see `prepared_rows`)."""

_ORDINARY, _LARGE = "1e140", "1e171"
"""If both means are below `_ORDINARY`, plain arithmetic merges the means. Two different doubles above `_LARGE` differ
by at least 1e154."""
_MIN_DIFFERENCE = "1e-160"
"""A difference below this limit counts as zero, because the square of the difference could underflow."""
_MIN_TERM = "1e-250"
"""Sums omit values below this limit, so that dividing a sum by a count does not underflow."""
_MAX_M2 = "'8e307'::double precision"
"""Merging and rolling up make any larger M2 infinite. Twice this limit is still a finite double."""


def merge_expression(kind: str, column: ColumnNames, old: str, new: str) -> str:
    """Return SQL for merging the rows `old` and `new`. `kind` selects the mean, its low part or the M2."""
    a, b = f"{old}.{column('mean')}", f"{new}.{column('mean')}"
    rest_a, rest_b = f"coalesce({old}.{column('low')}, 0)", f"{new}.{column('low')}"
    na, nb, stored = f"{old}.{column('n')}", f"{new}.{column('n')}", column(kind)
    merge = _merged_squares if kind == "m2" else _merged_mean
    # The SQL in `near` is faster than the SQL in `far`. The SQL in `near` is exact enough only if both means are below
    # `_ORDINARY` (1e140).
    near = merge(kind, column, old, new, f"(({b} - {a}) + ({rest_b} - {rest_a}))")
    far = merge(kind, column, old, new, f"({_difference((b, rest_b), (a, rest_a))})")
    if kind == "m2":
        # For counts na and nb, M2 grows by na * nb / (na + nb) times the squared difference of the means. The factor
        # na * nb / (na + nb) is less than least(na, nb).
        limit = f"sqrt({_MAX_M2} / least({na}, {nb}))"
        far = f"CASE WHEN abs({_difference((b, rest_b), (a, rest_a))}) >= {limit} THEN {INFINITE} ELSE {far} END"
    return (
        f"CASE WHEN {na} = 0 THEN {new}.{stored} WHEN {nb} = 0 THEN {old}.{stored}"
        f" WHEN greatest(abs({a}), abs({b})) < {_ORDINARY} THEN {near} ELSE {far} END"
    )


def _difference(a: tuple[str, str], b: tuple[str, str]) -> str:
    return (
        f"CASE WHEN greatest(abs({a[0]}), abs({b[0]})) < {_LARGE} THEN ({a[0]} - {b[0]}) + ({a[1]} - {b[1]})"
        f" WHEN {a[0]} = {b[0]} THEN 0 WHEN {a[0]} <> {b[0]} THEN {INFINITE} END"
    )


def _merged_mean(kind: str, column: ColumnNames, old: str, new: str, delta: str) -> str:
    na, nb = f"{old}.{column('n')}", f"{new}.{column('n')}"
    move = f"CASE WHEN abs({delta}) < {_MIN_DIFFERENCE} THEN 0 ELSE {delta} * {nb} / ({na} + {nb}) END"
    return _sum(kind, f"{old}.{column('mean')}", f"(coalesce({old}.{column('low')}, 0) + {move})")


def _sum(kind: str, mean: str, move: str) -> str:
    return f"{mean} + {move}" if kind == "mean" else f"{move} - (({mean} + {move}) - {mean})"


def _merged_squares(_: str, column: ColumnNames, old: str, new: str, delta: str) -> str:
    na, nb, m2 = f"{old}.{column('n')}", f"{new}.{column('n')}", column("m2")
    weight = f"({na}::double precision * {nb} / ({na} + {nb}))"
    moved = f"CASE WHEN abs({delta}) < {_MIN_DIFFERENCE} THEN 0 ELSE {delta} * {delta} * {weight} END"
    return (
        f"CASE WHEN greatest({old}.{m2}, {new}.{m2}) < {_MAX_M2} / 2 THEN {old}.{m2} + {new}.{m2} + {moved}"
        f" ELSE {INFINITE} END"
    )


def rollup_expression(kind: str, column: ColumnNames) -> str:
    """Return an SQL aggregate that computes `kind` (`mean`, `low` or `m2`) from `prepared_rows`."""
    delta, total_count = column("delta"), f"sum({column('n')}::double precision)"
    moments = f"sum({column('n')} * {delta}) FILTER (WHERE abs({delta}) > {_MIN_TERM})"
    move = divide(f"coalesce({moments}, 0)", total_count)
    if kind != "m2":
        return _sum(kind, f"max({column('centre')})", f"(max({column('rest')}) + {move})")
    squares = sum_aggregate(column("squares"))
    # `squares` measures deviations from `centre` instead of the mean, so subtract the difference, `excess`.
    excess = f"CASE WHEN abs({moments}) > 1e-150 THEN {moments} * {move} ELSE 0 END"
    return f"CASE WHEN {squares} < {INFINITE} THEN greatest({squares} - {excess}, 0) ELSE {squares} END"


def prepared_rows(fields: Sequence[ColumnNames], source: str, selected: Sequence[str], keys: Sequence[str]) -> str:
    """Return a FROM item with the stored rows and the temporary columns that `rollup_expression` needs.

    Args:
        fields: for each field, a function that returns the name of the column of a kind, such as `mean`.
        source: the FROM item with the stored rows.
        selected: the columns to select from the source.
        keys: the selected columns by which rows are grouped.
    """
    by = f"OVER (PARTITION BY {', '.join(keys)})" if keys else "OVER ()"
    rows = f"(SELECT {', '.join(selected)} FROM {source}) AS r"
    for step in (_centres, _deltas, _squares) if fields else ():
        new_columns = [f"{expression} AS {name}" for field in fields for expression, name in step(field, by)]
        # `OFFSET 0` keeps Postgres from inlining the subquery, and from computing an expression again at each use.
        rows = f"(SELECT *, {', '.join(new_columns)} FROM {rows} OFFSET 0) AS r"
    return rows


def _centres(column: ColumnNames, by: str) -> list[tuple[str, str]]:
    """Return the SQL of the columns `centre` and `rest`. Their sum is near the mean of the group's rows."""
    mean, n = column("mean"), column("n")
    weighted_sum = f"sum(CASE WHEN abs({mean}) BETWEEN {_MIN_TERM} AND {_LARGE} THEN {n} * {mean} ELSE 0 END) {by}"
    estimate = f"{weighted_sum} / nullif(sum({n}::double precision) {by}, 0)"
    return [
        (f"least(greatest({estimate}, min({mean}) {by}), max({mean}) {by})", column("centre")),
        (f"min(coalesce({column('low')}, 0)) FILTER (WHERE {mean} IS NOT NULL) {by}", column("rest")),
    ]


def _deltas(column: ColumnNames, _: str) -> list[tuple[str, str]]:
    mean = (column("mean"), f"coalesce({column('low')}, 0)")
    return [(_difference(mean, (column("centre"), column("rest"))), column("delta"))]


def _squares(column: ColumnNames, _: str) -> list[tuple[str, str]]:
    n, m2, delta = column("n"), column("m2"), column("delta")
    moved = (
        f"CASE WHEN abs({delta}) < {_MIN_DIFFERENCE} THEN 0 WHEN abs({delta}) < {_ORDINARY}"
        f" OR abs({delta}) < sqrt({_MAX_M2} / nullif({n}, 0)) THEN {n} * ({delta} * {delta})"
        f" WHEN abs({delta}) > 0 THEN {INFINITE} END"
    )
    total = f"CASE WHEN {m2} < {_MAX_M2} THEN {m2} + {moved} WHEN {m2} IS NOT NULL THEN {INFINITE} END"
    return [(total, column("squares"))]
