"""The normal form of an expression: one text for all expressions that parse to the same tree.

Names of stored columns are derived from the normal form, so it must never change for an existing expression.
"""

from __future__ import annotations

from functools import lru_cache

from tidemill_contract.expressions.syntax import Call, Case, Column, Literal, Node, parse


@lru_cache(maxsize=1024)
def normal_form(text: str) -> str:
    """Return an expression in a form that does not depend on blanks, letter case and redundant parentheses.

    `status>=500` and `(STATUS >= 500)` have the same normal form, `>=("status",500)`.

    Raises:
        ExpressionError: the text is not an expression.
    """
    return _written(parse(text))


def _written(node: Node) -> str:
    match node:
        case Column(name):
            return f'"{name}"'
        case Literal(value):
            return _constant(value)
        case Call(name, args):
            return f"{name}({','.join(map(_written, args))})"
        case Case(branches, default):
            whens = "".join(f"{_written(condition)}:{_written(value)};" for condition, value in branches)
            return f"CASE({whens}{_written(default)})"


def _constant(value: str | int | float | bool | None) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return str(value).upper()
    return repr(value)
