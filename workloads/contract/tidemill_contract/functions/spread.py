"""SQL that merges means and sums of squared deviations (M2).

By Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample variances".

A mean is kept as two doubles, `mean` + `low`: one alone is off by more than the spread where values are large and close
to each other, as balances and integers beyond 2^53 are. Only differences of means are taken, so that equal values have
a variance of exactly 0 however they were merged. A row from before there was a `low` has null there, which counts as 0.

Nothing raises (see `doubles`): M2 becomes infinite instead, and then the mean means nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tidemill_contract.functions.doubles import INFINITE, divided, total

Column = Callable[[str], str]
"""The quoted column of a field by its kind."""
SCRATCH = ("centre", "rest", "delta", "squares")
"""Columns that exist only within a statement (see `prepared`), named like kinds."""

_ORDINARY, _LARGE = "1e140", "1e171"
"""Means below the first merge by plain arithmetic; doubles above the second that differ do so by more than 1e154."""
_NONE = "1e-160"
"""What differs by less does not differ: the square would be next to zero, and a share of it zero."""
_LEAST = "1e-250"
"""Sums of larger differences stay above zero when divided by a count, whatever cancels out."""
_MOST = "'8e307'::double precision"
"""What M2 grows by at once, and up to which it grows: two of these have a finite sum."""


def merged(kind: str, column: Column, old: str, new: str) -> str:
    """The mean, its low part or the M2 of two rows (aliases) together; the new one has a low part."""
    a, b = f"{old}.{column('mean')}", f"{new}.{column('mean')}"
    rest_a, rest_b = f"coalesce({old}.{column('low')}, 0)", f"{new}.{column('low')}"
    na, nb, stored = f"{old}.{column('n')}", f"{new}.{column('n')}", column(kind)
    make = _merged_squares if kind == "m2" else _moved
    # Most means are ordinary, and the rest of the checks is not worth its time for them.
    near = make(kind, column, old, new, f"(({b} - {a}) + ({rest_b} - {rest_a}))")
    far = make(kind, column, old, new, f"({_difference((b, rest_b), (a, rest_a))})")
    if kind == "m2":
        limit = f"sqrt({_MOST} / least({na}, {nb}))"  # the weight of the square is less than `least`
        far = f"CASE WHEN abs({_difference((b, rest_b), (a, rest_a))}) >= {limit} THEN {INFINITE} ELSE {far} END"
    return (
        f"CASE WHEN {na} = 0 THEN {new}.{stored} WHEN {nb} = 0 THEN {old}.{stored}"
        f" WHEN greatest(abs({a}), abs({b})) < {_ORDINARY} THEN {near} ELSE {far} END"
    )


def _difference(a: tuple[str, str], b: tuple[str, str]) -> str:
    """The difference of two means, each with its low part."""
    return (
        f"CASE WHEN greatest(abs({a[0]}), abs({b[0]})) < {_LARGE} THEN ({a[0]} - {b[0]}) + ({a[1]} - {b[1]})"
        f" WHEN {a[0]} = {b[0]} THEN 0 WHEN {a[0]} <> {b[0]} THEN {INFINITE} END"
    )


def _moved(kind: str, column: Column, old: str, new: str, delta: str) -> str:
    na, nb = f"{old}.{column('n')}", f"{new}.{column('n')}"
    move = f"CASE WHEN abs({delta}) < {_NONE} THEN 0 ELSE {delta} * {nb} / ({na} + {nb}) END"
    return _sum(kind, f"{old}.{column('mean')}", f"(coalesce({old}.{column('low')}, 0) + {move})")


def _sum(kind: str, mean: str, move: str) -> str:
    """One of the two doubles of a mean that is moved. What the low part loses is small next to the move."""
    return f"{mean} + {move}" if kind == "mean" else f"{move} - (({mean} + {move}) - {mean})"


def _merged_squares(_: str, column: Column, old: str, new: str, delta: str) -> str:
    na, nb, m2 = f"{old}.{column('n')}", f"{new}.{column('n')}", column("m2")
    weight = f"({na}::double precision * {nb} / ({na} + {nb}))"
    moved = f"CASE WHEN abs({delta}) < {_NONE} THEN 0 ELSE {delta} * {delta} * {weight} END"
    return (
        f"CASE WHEN greatest({old}.{m2}, {new}.{m2}) < {_MOST} / 2 THEN {old}.{m2} + {new}.{m2} + {moved}"
        f" ELSE {INFINITE} END"
    )


def rolled(kind: str, column: Column) -> str:
    """The same of all rows of a key, as aggregates over `prepared` rows."""
    delta, number = column("delta"), f"sum({column('n')}::double precision)"
    moments = f"sum({column('n')} * {delta}) FILTER (WHERE abs({delta}) > {_LEAST})"
    move = divided(f"coalesce({moments}, 0)", number)
    if kind != "m2":
        return _sum(kind, f"max({column('centre')})", f"(max({column('rest')}) + {move})")
    squares = total(column("squares"))
    # The squares are those of the distances from the centre, which is not quite the mean.
    excess = f"CASE WHEN abs({moments}) > 1e-150 THEN {moments} * {move} ELSE 0 END"
    return f"CASE WHEN {squares} < {INFINITE} THEN greatest({squares} - {excess}, 0) ELSE {squares} END"


def prepared(fields: Sequence[Column], source: str, selected: Sequence[str], keys: Sequence[str]) -> str:
    """A FROM item of stored rows, each with what `rolled` needs.

    Args:
        fields: columns of each field.
        source: a FROM item.
        selected: what is selected of it.
        keys: columns among these, rows of which are merged.
    """
    by = f"OVER (PARTITION BY {', '.join(keys)})" if keys else "OVER ()"
    rows = f"(SELECT {', '.join(selected)} FROM {source}) AS r"
    for step in (_centres, _deltas, _squares) if fields else ():
        further = [f"{expression} AS {name}" for field in fields for expression, name in step(field, by)]
        # OFFSET keeps Postgres from writing an expression out, and working it out, wherever its column is named.
        rows = f"(SELECT *, {', '.join(further)} FROM {rows} OFFSET 0) AS r"
    return rows


def _centres(column: Column, by: str) -> list[tuple[str, str]]:
    """A value near the mean of all, and that very value where all means are equal."""
    mean, n = column("mean"), column("n")
    weighed = f"sum(CASE WHEN abs({mean}) BETWEEN {_LEAST} AND {_LARGE} THEN {n} * {mean} ELSE 0 END) {by}"
    about = f"{weighed} / nullif(sum({n}::double precision) {by}, 0)"
    return [
        (f"least(greatest({about}, min({mean}) {by}), max({mean}) {by})", column("centre")),
        (f"min(coalesce({column('low')}, 0)) FILTER (WHERE {mean} IS NOT NULL) {by}", column("rest")),
    ]


def _deltas(column: Column, _: str) -> list[tuple[str, str]]:
    """How far each mean is from it."""
    mean = (column("mean"), f"coalesce({column('low')}, 0)")
    return [(_difference(mean, (column("centre"), column("rest"))), column("delta"))]


def _squares(column: Column, _: str) -> list[tuple[str, str]]:
    """Each M2, taken to it."""
    n, m2, delta = column("n"), column("m2"), column("delta")
    moved = (
        f"CASE WHEN abs({delta}) < {_NONE} THEN 0 WHEN abs({delta}) < {_ORDINARY}"
        f" OR abs({delta}) < sqrt({_MOST} / nullif({n}, 0)) THEN {n} * ({delta} * {delta})"
        f" WHEN abs({delta}) > 0 THEN {INFINITE} END"
    )
    both = f"CASE WHEN {m2} < {_MOST} THEN {m2} + {moved} WHEN {m2} IS NOT NULL THEN {INFINITE} END"
    return [(both, column("squares"))]
