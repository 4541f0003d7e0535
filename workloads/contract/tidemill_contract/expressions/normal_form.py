"""Write expressions in a normal form. Expressions with the same syntax tree have the same normal form (a text).

Some names of stored columns contain a hash of an expression's normal form. New versions of Tidemill must keep the
normal form of every expression.
"""

from __future__ import annotations

from functools import lru_cache

from tidemill_contract.expressions.syntax import Call, Case, Column, Literal, Node, parse


@lru_cache(maxsize=1024)
def normal_form(text: str) -> str:
    """Return the normal form of an expression, such as `>=("status",500)` for `(STATUS >= 500)`.

    Raises:
        ExpressionError: the text is not an expression.
    """
    return _render(parse(text))


def _render(node: Node) -> str:
    match node:
        case Column(name):
            return f'"{name}"'
        case Literal(value):
            return _constant(value)
        case Call(name, args):
            return f"{name}({','.join(map(_render, args))})"
        case Case(branches, default):
            whens = "".join(f"{_render(condition)}:{_render(value)};" for condition, value in branches)
            return f"CASE({whens}{_render(default)})"


def _constant(value: str | int | float | bool | None) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return str(value).upper()
    return repr(value)
