"""Filter and derive expressions: their types and their compilation to vectorised polars expressions.

Every function is total: what SQL leaves to an error (overflow, division by zero, text that is no number) gives NULL,
so no event can stop a batch. None looks at other rows, so an event's result does not depend on its batch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from tidemill_contract.expressions.functions import UNSTABLE, apply_function
from tidemill_contract.expressions.functions import case as case_of
from tidemill_contract.expressions.syntax import Call, Case, Column, ExpressionError, Literal, Node, parse
from tidemill_contract.expressions.values import POLARS_TYPES, Typed, column, literal, unsigned_zero
from tidemill_contract.resource.spec import PipelineSpec

__all__ = ["POLARS_TYPES", "ExpressionError", "Transform", "check", "columns", "compile_transform", "derived_types"]

MAX_SIZE = 2_000
MAX_DERIVED_BYTES = 1_024


@dataclass(frozen=True)
class Transform:
    """A pipeline's derives (name, spec type, polars expression) in order, and its filter."""

    derives: tuple[tuple[str, str, pl.Expr], ...]
    condition: pl.Expr | None

    def apply(self, frame: pl.DataFrame) -> pl.DataFrame:
        """`frame` with the derived columns added, and only the rows for which the filter is true.

        Fields must have their canonical dtypes (POLARS_TYPES); derives get theirs. A derived string of more than
        1,024 bytes is null: it could be a group column, and a chain of them could fill the memory.
        """
        for _, _, expression in self.derives:
            frame = _with_column(frame, expression)
        return frame if self.condition is None else frame.filter(self.condition)


def _with_column(frame: pl.DataFrame, expression: pl.Expr) -> pl.DataFrame:
    """The frame and a derived column.

    Polars may compute one value where the rows of a batch happen to be equal, and then miss the others. Expressions
    look at one row each, so that the value stands for all: better than to look for an event that is to blame.
    """
    try:
        return frame.with_columns(expression)
    except pl.exceptions.InvalidOperationError:
        values = frame.select(expression).to_series()
        if len(values) != 1:
            raise
        return frame.with_columns(values.new_from_index(0, frame.height))


def compile_transform(spec: PipelineSpec) -> Transform:
    """Compile a pipeline's transform.

    Raises:
        ExpressionError: an expression is not valid; the text starts with the derive's name, or `filter`.
    """
    types: dict[str, str] = {f.name: f.type for f in spec.source.fields if f.type in POLARS_TYPES}
    derives = []
    for derive in spec.transform.derive:
        try:
            expression, kind = _derive(derive.expression, types)
        except ExpressionError as error:
            raise ExpressionError(f"derive {derive.name}: {error}") from None
        types[derive.name] = kind
        derives.append((derive.name, kind, expression.alias(derive.name)))
    condition = None
    if spec.transform.filter is not None:
        try:
            condition = _filter(spec.transform.filter, types)
        except ExpressionError as error:
            raise ExpressionError(f"filter: {error}") from None
    return Transform(tuple(derives), condition)


def derived_types(spec: PipelineSpec) -> dict[str, str]:
    """The spec type of each derive, by name.

    Raises:
        ExpressionError: an expression is not valid.
    """
    return {name: kind for name, kind, _ in compile_transform(spec).derives}


def check(text: str, types: Mapping[str, str], *, as_filter: bool = False) -> str:
    """The spec type of an expression over columns of these spec types.

    Raises:
        ExpressionError: it is not valid, or not a condition where `as_filter` asks for one.
    """
    if as_filter:
        _filter(text, types)
        return "boolean"
    return _derive(text, types)[1]


def columns(text: str) -> frozenset[str]:
    """The names of all columns in an expression.

    Raises:
        ExpressionError: it cannot be read.
    """
    found: set[str] = set()
    stack: list[Node] = [parse(text)]
    while stack:
        match stack.pop():
            case Column(name):
                found.add(name)
            case Call(_, args):
                stack.extend(args)
            case Case(branches, default):
                stack.extend([default, *(node for branch in branches for node in branch)])
            case Literal():
                pass
    return frozenset(found)


def _derive(text: str, types: Mapping[str, str]) -> tuple[pl.Expr, str]:
    typed = _compile(parse(text), types)
    if typed.kind == "null":
        raise ExpressionError("is always NULL, so it has no type; give one branch a value")
    expression = typed.expression.cast(POLARS_TYPES[typed.kind])
    if typed.kind == "number":
        expression = unsigned_zero(expression)
    if typed.kind == "string":
        expression = pl.when(expression.str.len_bytes() <= MAX_DERIVED_BYTES).then(expression)
    return expression, typed.kind


def _filter(text: str, types: Mapping[str, str]) -> pl.Expr:
    typed = _compile(parse(text), types)
    if typed.kind not in ("boolean", "null"):
        raise ExpressionError(f"is of type {typed.kind}, not a condition; compare it, for example: {text[:60]} > 0")
    return typed.expression.cast(pl.Boolean())


def _compile(node: Node, types: Mapping[str, str]) -> Typed:
    match node:
        case Literal():
            return literal(node.value)
        case Column():
            typed = _lookup(node.name, types)
        case Case():
            branches = [(_compile(condition, types), _compile(value, types)) for condition, value in node.branches]
            typed = case_of(branches, _compile(node.default, types))
        case Call():
            typed = apply_function(node.name, [_compile(argument, types) for argument in node.args])
    # Some functions use an argument twice in the polars tree, so nesting them multiplies.
    if typed.size > MAX_SIZE:
        raise ExpressionError("is too large when written out; split it over several derives")
    return typed


def _lookup(name: str, types: Mapping[str, str]) -> Typed:
    if name in types:
        return column(name, types[name])
    if name.upper() in UNSTABLE:
        raise ExpressionError(f"{name.upper()} gives another value each time; use the event's own fields")
    close = difflib.get_close_matches(name, types, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(list(types)[:12]) or 'none'}"
    raise ExpressionError(f"unknown column '{name}'; {hint} (a text is written in single quotes)")
