"""SQL that merges means and sums of squared deviations (M2), by Chan, Golub and LeVeque (1979), "Updating formulae and
a pairwise algorithm for computing sample variances".

A mean is kept as two doubles, `mean` + `low`: one alone is off by more than the spread where values are large and close
to each other, as balances and integers beyond 2^53 are. Only differences of means are taken, so that equal values have
a variance of exactly 0 however they were merged. A row from before there was a `low` has null there, which counts as 0.

Nothing raises (see `doubles`): M2 becomes infinite instead, and then the mean means nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from tidemill_contract.doubles import INFINITE, total

Column = Callable[[Literal["n", "mean", "low", "m2", "pivot", "rest", "delta", "centre", "squares"]], str]
"""The quoted column of a field by its kind."""

_ORDINARY, _LARGE = "1e140", "1e171"
"""Means below the first merge by plain arithmetic; doubles above the second that differ do so by more than 1e154."""
_NONE = "1e-160"
"""What differs by less does not differ: the square would be next to zero, and a share of it zero."""
_LEAST = "1e-250"
"""Sums of larger differences stay above zero when divided by a count, whatever cancels out."""
_MOST = "'1.797e308'::double precision"


def merged(kind: str, column: Column, old: str, new: str) -> str:
    """The mean, its low part or the M2 of two rows (aliases) together."""
    a, b = (f"{row}.{column('mean')}" for row in (old, new))
    rest = f"coalesce({old}.{column('low')}, 0)"
    na, nb = (f"{row}.{column('n')}" for row in (old, new))
    delta = _difference((b, f"coalesce({new}.{column('low')}, 0)"), (a, rest))
    if kind == "m2":
        both = _merged_squares(column, old, new, delta)
    else:
        move = f"CASE WHEN abs({delta}) < {_NONE} THEN 0 ELSE {delta} * {nb} / nullif({na} + {nb}, 0) END"
        both = _sum(kind, a, f"({rest} + {move})")
    stored = column(kind)  # type: ignore[arg-type]
    return f"CASE WHEN {na} = 0 THEN {new}.{stored} WHEN {nb} = 0 THEN {old}.{stored} ELSE {both} END"


def _difference(a: tuple[str, str], b: tuple[str, str]) -> str:
    """A - b, of a mean and its low part each."""
    return (
        f"CASE WHEN greatest(abs({a[0]}), abs({b[0]})) < {_LARGE} THEN ({a[0]} - {b[0]}) + ({a[1]} - {b[1]})"
        f" WHEN {a[0]} = {b[0]} THEN 0 WHEN {a[0]} <> {b[0]} THEN {INFINITE} END"
    )


def _sum(kind: str, mean: str, move: str) -> str:
    """One of the two doubles of a mean that is moved. What the low part loses is small next to the move."""
    return f"{mean} + {move}" if kind == "mean" else f"{move} - (({mean} + {move}) - {mean})"


def _merged_squares(column: Column, old: str, new: str, delta: str) -> str:
    na, nb, m2 = f"{old}.{column('n')}", f"{new}.{column('n')}", column("m2")
    a, b = f"{old}.{m2}", f"{new}.{m2}"
    means = ", ".join(f"abs({row}.{column('mean')})" for row in (old, new))
    weight = f"({na}::double precision * {nb} / nullif({na} + {nb}, 0))"
    moved = f"CASE WHEN abs({delta}) < {_NONE} THEN 0 ELSE ({delta}) * ({delta}) * {weight} END"
    limit = f"sqrt({_MOST} / least({na}, {nb}))"  # the weight is less
    bounded = f"CASE WHEN abs({delta}) < {limit} THEN {moved} ELSE {INFINITE} END"
    return (
        f"CASE WHEN greatest({means}) < {_ORDINARY} AND greatest({a}, {b}) < 1e300 THEN {a} + {b} + {moved}"
        f" WHEN greatest({a}, {b}, {bounded}) < 5e307 THEN {a} + {b} + {moved} ELSE {INFINITE} END"
    )


def rolled(kind: str, column: Column) -> str:
    """The same of all rows of a key, as aggregates over `prepared` rows."""
    if kind == "m2":
        return total(column("squares"))
    move = f"({column('rest')} + {column('centre')})"
    return f"max({_sum(kind, column('pivot'), move)})"


def prepared(fields: Sequence[Column], source: str, selected: Sequence[str], keys: Sequence[str]) -> str:
    """A FROM item of stored rows, each with what `rolled` needs.

    Args:
        fields: columns of each field.
        source: a FROM item.
        selected: what is selected of it.
        keys: columns among these, rows of which are merged.
    """
    if not fields:
        return f"(SELECT {', '.join(selected)} FROM {source}) AS r"
    by = f"OVER (PARTITION BY {', '.join(keys)})" if keys else "OVER ()"
    rows = f"(SELECT {', '.join(selected)} FROM {source}) AS r"
    for step in (_pivots, _centres, _squares):
        further = [f"{expression} AS {name}" for field in fields for expression, name in step(field, by)]
        rows = f"(SELECT *, {', '.join(further)} FROM {rows}) AS r"
    return rows


def _pivots(column: Column, by: str) -> list[tuple[str, str]]:
    """Some value near all means, from which they are measured."""
    return [
        (f"min({column('mean')}) {by}", column("pivot")),
        (f"min(coalesce({column('low')}, 0)) FILTER (WHERE {column('mean')} IS NOT NULL) {by}", column("rest")),
    ]


def _centres(column: Column, by: str) -> list[tuple[str, str]]:
    """How far each mean is from the pivot, and how far the mean of all is."""
    delta = _difference((column("mean"), f"coalesce({column('low')}, 0)"), (column("pivot"), column("rest")))
    weighed = f"sum(CASE WHEN abs({delta}) < {_LEAST} THEN 0 ELSE {column('n')} * ({delta}) END) {by}"
    number = f"sum({column('n')}) FILTER (WHERE {column('mean')} IS NOT NULL) {by}"
    return [(delta, column("delta")), (f"{weighed} / nullif({number}, 0)", column("centre"))]


def _squares(column: Column, _: str) -> list[tuple[str, str]]:
    """Each M2, taken to the mean of all."""
    n, m2, away = column("n"), column("m2"), f"({column('delta')} - {column('centre')})"
    moved = (
        f"CASE WHEN abs({away}) < {_NONE} THEN 0"
        f" WHEN abs({away}) < sqrt({_MOST} / nullif({n}, 0)) THEN {n} * ({away} * {away})"
        f" WHEN abs({away}) > 0 THEN {INFINITE} END"
    )
    both = (
        f"CASE WHEN greatest({m2}, {moved}) < 8e307 THEN {m2} + {moved}"
        f" WHEN {m2} IS NOT NULL AND {n} > 0 THEN {INFINITE} END"
    )
    return [(both, column("squares"))]
