"""Check the types of filter and derive expressions, and compile the expressions to vectorised polars expressions."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from tidemill_contract.expressions.functions import UNSTABLE, apply_function, case_when
from tidemill_contract.expressions.syntax import Call, Case, Column, ExpressionError, Literal, Node, parse
from tidemill_contract.expressions.values import POLARS_TYPES, TypedExpression, column, literal, unsigned_zero
from tidemill_contract.resource.spec import PipelineSpec

__all__ = [
    "POLARS_TYPES",
    "ExpressionError",
    "Transform",
    "check_type",
    "column_names",
    "compile_condition",
    "compile_transform",
    "derived_types",
]

MAX_SIZE = 2_000
MAX_DERIVED_BYTES = 1_024


@dataclass(frozen=True)
class Transform:
    """A compiled transform: the derives (computed fields) and the filter for events.

    Attributes:
        derives: the name, the spec type and the polars expression of each derive, in order.
        condition: the filter.
        after_filter: columns that are added after the filter, in order.
    """

    derives: tuple[tuple[str, str, pl.Expr], ...]
    condition: pl.Expr | None
    after_filter: tuple[pl.Expr, ...] = ()

    def apply(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Add the derived columns to `frame`, and keep only the rows for which the filter is true.

        A derived string of more than 1,024 bytes becomes null, because a group column cannot hold it.
        """
        for _, _, expression in self.derives:
            frame = _with_column(frame, expression)
        frame = frame if self.condition is None else frame.filter(self.condition)
        for expression in self.after_filter:
            frame = _with_column(frame, expression)
        return frame


def _with_column(frame: pl.DataFrame, expression: pl.Expr) -> pl.DataFrame:
    try:
        return frame.with_columns(expression)
    except pl.exceptions.InvalidOperationError:
        values = frame.select(expression).to_series()
        # If an expression has the same value in all rows, polars may return this value only once.
        if len(values) != 1:
            raise
        return frame.with_columns(values.new_from_index(0, frame.height))


def compile_transform(spec: PipelineSpec) -> Transform:
    """Compile a pipeline's transform.

    Raises:
        ExpressionError: an expression is not valid; the message names the derive or the filter.
    """
    types: dict[str, str] = {name: kind for name, kind in spec.field_kinds.items() if kind in POLARS_TYPES}
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
            condition = compile_condition(spec.transform.filter, types)
        except ExpressionError as error:
            raise ExpressionError(f"filter: {error}") from None
    return Transform(tuple(derives), condition)


def derived_types(spec: PipelineSpec) -> dict[str, str]:
    """Return the spec types of the derives (computed fields) by name, or raise ExpressionError."""
    return {name: kind for name, kind, _ in compile_transform(spec).derives}


def check_type(text: str, types: Mapping[str, str], *, as_filter: bool = False) -> str:
    """Return the type of an expression's values, such as `integer`.

    Args:
        text: the expression.
        types: the spec types of the available columns, by name.
        as_filter: whether the expression must be a condition.

    Raises:
        ExpressionError: the expression is not valid, or is not a condition although `as_filter` is true.
    """
    expression, kind = (compile_condition(text, types), "boolean") if as_filter else _derive(text, types)
    schema = {name: POLARS_TYPES[column_kind] for name, column_kind in types.items() if column_kind in POLARS_TYPES}
    try:
        # Evaluate the expression without rows, to find out whether polars accepts the expression.
        pl.DataFrame(schema=schema).select(expression)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = str(error).partition("\n")[0]
        raise ExpressionError(f"cannot be computed ({reason[:200]}); write another expression") from None
    return kind


def compile_condition(text: str, types: Mapping[str, str]) -> pl.Expr:
    """Compile a condition over typed columns to a polars expression, or raise ExpressionError."""
    typed = _compile(parse(text), types)
    if typed.kind not in ("boolean", "null"):
        raise ExpressionError(
            f"is of type {typed.kind}, not a condition; compare the value, for example: {text[:60]} > 0"
        )
    return typed.expression.cast(pl.Boolean())


def column_names(text: str) -> frozenset[str]:
    """Return the names of all columns in an expression, or raise ExpressionError."""
    names: set[str] = set()
    stack: list[Node] = [parse(text)]
    while stack:
        match stack.pop():
            case Column(name):
                names.add(name)
            case Call(_, args):
                stack.extend(args)
            case Case(branches, default):
                stack.extend([default, *(node for branch in branches for node in branch)])
            case Literal():
                pass
    return frozenset(names)


def _derive(text: str, types: Mapping[str, str]) -> tuple[pl.Expr, str]:
    typed = _compile(parse(text), types)
    if typed.kind == "null":
        raise ExpressionError("is always NULL and has no type; give one branch a value")
    expression = typed.expression.cast(POLARS_TYPES[typed.kind])
    if typed.kind == "number":
        expression = unsigned_zero(expression)
    if typed.kind == "string":
        expression = pl.when(expression.str.len_bytes() <= MAX_DERIVED_BYTES).then(expression)
    return expression, typed.kind


def _compile(node: Node, types: Mapping[str, str]) -> TypedExpression:
    match node:
        case Literal():
            return literal(node.value)
        case Column():
            typed = _typed_column(node.name, types)
        case Case():
            branches = [(_compile(condition, types), _compile(value, types)) for condition, value in node.branches]
            typed = case_when(branches, _compile(node.default, types))
        case Call():
            typed = apply_function(node.name, [_compile(argument, types) for argument in node.args])
    # Some functions use an argument twice. Each nested call of these functions may double the expression's size.
    if typed.size > MAX_SIZE:
        raise ExpressionError("is too large after compilation; split the expression into several derives")
    return typed


def _typed_column(name: str, types: Mapping[str, str]) -> TypedExpression:
    if name in types:
        return column(name, types[name])
    if name.upper() in UNSTABLE:
        raise ExpressionError(f"{name.upper()} gives a different value at each call; use fields of the event")
    close = difflib.get_close_matches(name, types, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"known columns: {', '.join(list(types)[:12]) or 'none'}"
    raise ExpressionError(f"unknown column '{name}'; {hint} (a text is written in single quotes)")
