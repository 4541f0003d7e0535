"""Compile expressions over metrics to SQL. If the metrics are finite, the SQL raises no error."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from tidemill_contract.decimals import DECIMALS, MAX_DIGITS, base_type, common_scales, decimal_type, scale_of
from tidemill_contract.expressions.syntax import Call, Case, Column, ExpressionError, Literal, Node, parse
from tidemill_contract.functions import doubles
from tidemill_contract.functions.base import SQL_TYPES
from tidemill_contract.times import read_start, rfc3339

NUMERIC = ("integer", "number")
_EXACT_TYPES = ("integer", *DECIMALS)
"""The spec types whose SQL type is numeric."""
_LARGEST_INTEGER = "1e38"
"""An integer of this size or more becomes NULL, to limit the size of products."""


@dataclass(frozen=True)
class Value:
    """An SQL expression with its spec type (or `null`).

    Attributes:
        simple: whether the SQL is only a column or a constant, so that repeating the SQL is cheap.
        constant: the text, if the expression is a string constant.
        exact: the value, if the expression is a constant of type number.
    """

    kind: str
    sql: str
    simple: bool = False
    constant: str | None = None
    exact: Decimal | None = None


def compile_sql(text: str, columns: Mapping[str, Value]) -> Value:
    """Compile an expression to SQL, or raise ExpressionError. `columns` has the SQL of each column by name."""
    compiled = _compile(parse(text), columns)
    match compiled.kind:
        case "null":
            raise ExpressionError("is always NULL and has no type; give one branch a value")
        case kind if kind in _EXACT_TYPES:
            return Value(kind, _bind("CASE WHEN abs({0}) < " + _LARGEST_INTEGER + " THEN {0} END", compiled))
        case "number":
            return Value("number", f"({compiled.sql} + 0.0::double precision)")  # turns -0.0 into 0.0
    return compiled


def _compile(node: Node, columns: Mapping[str, Value]) -> Value:
    match node:
        case Literal(value):
            return _literal(value)
        case Column(name):
            return _column(name, columns)
        case Case(branches, default):
            conditions = [_as_condition("CASE WHEN", _compile(condition, columns)) for condition, _ in branches]
            return _case(conditions, [*(_compile(value, columns) for _, value in branches), _compile(default, columns)])
        case Call(name, args):
            return _call(name, [_compile(argument, columns) for argument in args])


def _literal(value: str | int | float | bool | None) -> Value:
    if value is None:
        return Value("null", "NULL", simple=True)
    if isinstance(value, str):
        return Value("string", f'{_quote(value)} COLLATE "C"', simple=True, constant=value)
    if isinstance(value, bool):
        return Value("boolean", str(value).lower(), simple=True)
    if isinstance(value, int):
        return Value("integer", f"{value}::numeric" if value >= 0 else f"({value}::numeric)", simple=True)
    return Value("number", f"'{value!r}'::double precision", simple=True, exact=Decimal(repr(value)))


def _quote(text: str) -> str:
    """Return a text as an SQL literal without per cent signs, which psycopg would interpret."""
    plain = text.replace("'", "''")
    return f"'{plain}'" if not set("%\\") & set(text) else "E'" + plain.replace("\\", r"\\").replace("%", r"\x25") + "'"


def _column(name: str, columns: Mapping[str, Value]) -> Value:
    if name in columns:
        return columns[name]
    close = difflib.get_close_matches(name, columns, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"known metrics: {', '.join(columns) or 'none'}"
    raise ExpressionError(f"unknown metric '{name}'; {hint} (a text is written in single quotes)")


def _bind(template: str, *values: Value) -> str:
    """Insert values into an SQL template (`{0}`, `{1}`, …).

    If the template repeats a value, Postgres still computes the value only once.
    """
    if all(value.simple for value in values):
        return f"({template.format(*(value.sql for value in values))})"
    names = [f"o._{n}" for n in range(len(values))]
    listed = ", ".join(f"{value.sql} AS _{n}" for n, value in enumerate(values))
    # `OFFSET 0` keeps Postgres from inlining the subquery, and from computing a value again at each use.
    return f"(SELECT {template.format(*names)} FROM (SELECT {listed} OFFSET 0) AS o)"


def _as_condition(name: str, value: Value) -> str:
    if value.kind not in ("boolean", "null"):
        raise ExpressionError(f"{name} takes a condition, not a {value.kind}; compare the value with another value")
    return value.sql if value.kind == "boolean" else "NULL::boolean"


def _as_number(name: str, value: Value) -> Value:
    match value.kind:
        case "number":
            return value
        case kind if kind in _EXACT_TYPES and value.simple:
            return Value("number", f"{value.sql}::double precision", simple=True)
        case kind if kind in _EXACT_TYPES:
            return Value("number", _bind("CASE WHEN abs({0}) < 1e300 THEN {0}::double precision END", value))
        case "null":
            return Value("number", "NULL::double precision", simple=True)
    raise ExpressionError(f"{name} takes numbers, not a {value.kind}")


def _with_exact_constants(values: Sequence[Value]) -> Sequence[Value]:
    return [_as_exact_decimal(value) for value in values] if any(value.kind in DECIMALS for value in values) else values


def _as_exact_decimal(value: Value) -> Value:
    if value.exact is None:
        return value
    scale = max(0, -int(value.exact.as_tuple().exponent))
    if scale > MAX_DIGITS:
        return value
    return Value(decimal_type(scale), f"({value.exact:f}::numeric)", simple=True)


def _unify(name: str, values: Sequence[Value]) -> tuple[str, list[Value]]:
    values = _with_exact_constants(values)
    kinds = {value.kind for value in values} - {"null"}
    if kinds == {"timestamp", "string"}:
        values = [_parse_time_constant(value) for value in values]
        kinds = {value.kind for value in values} - {"null"}
    if len(kinds) > 1 and kinds <= {*NUMERIC, *DECIMALS}:
        scales = common_scales(value.kind for value in values if value.kind != "null")
        if scales is None:
            return "number", [_as_number(name, value) for value in values]
        kinds = {decimal_type(max(scales))}
    if len(kinds) > 1:
        raise ExpressionError(f"{name} mixes {' and '.join(sorted(map(base_type, kinds)))}; use metrics of one type")
    kind = kinds.pop() if kinds else "null"
    return kind, [_null(kind) if value.kind == "null" else value for value in values]


def _null(kind: str) -> Value:
    sql_type = {"null": "boolean", "integer": "numeric"}.get(kind) or SQL_TYPES[kind].split(" COLLATE")[0]
    return Value(kind, f"NULL::{sql_type}", simple=True)


def _parse_time_constant(value: Value) -> Value:
    if value.constant is None:
        return value
    try:
        moment = rfc3339(read_start(value.constant))
    except ValueError:
        raise ExpressionError(
            f"'{value.constant}' is not a time; write RFC 3339 with a zone, such as '2013-01-31T12:00:00Z'"
        ) from None
    return Value("timestamp", f"timestamptz '{moment}'", simple=True)


def _case(conditions: Sequence[str], values: Sequence[Value]) -> Value:
    kind, unified = _unify("CASE", values)
    whens = " ".join(f"WHEN {c} THEN {v.sql}" for c, v in zip(conditions, unified, strict=False))
    return Value(kind, f"(CASE {whens} ELSE {unified[-1].sql} END)")


def _call(name: str, args: Sequence[Value]) -> Value:
    entry = _FUNCTIONS.get(name)
    if entry is None:
        close = difflib.get_close_matches(name, FUNCTION_NAMES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known functions: {', '.join(FUNCTION_NAMES)}"
        raise ExpressionError(f"metrics cannot be combined with {name}; {hint}")
    least, most, build = entry
    if not least <= len(args) <= most:
        count = str(least) if least == most else f"{least} to {most}" if most < _MANY else f"at least {least}"
        raise ExpressionError(f"{name} takes {count} argument{'' if count == '1' else 's'}, not {len(args)}")
    return build(name, args)


_PRODUCT = (
    "CASE WHEN {0} IS NULL OR {1} IS NULL THEN NULL WHEN {0} = 0 OR {1} = 0 THEN 0.0::double precision"
    f" WHEN abs({{0}}) > 1 AND abs({{1}}) > 1 AND abs({{0}}) >= {doubles.LARGEST} / abs({{1}}) THEN NULL"
    f" WHEN abs({{0}}) < 1 AND abs({{1}}) < 1 AND abs({{0}}) <= {doubles.TINIEST} / abs({{1}}) THEN 0.0"
    " ELSE {0} * {1} END"
)
_QUOTIENT = (
    f"CASE WHEN {{1}} = 0 THEN NULL WHEN abs({{1}}) < 1 AND abs({{0}}) >= {doubles.LARGEST} * abs({{1}}) THEN NULL"
    f" WHEN abs({{1}}) > 1 AND abs({{0}}) <= {doubles.TINIEST} * abs({{1}}) THEN 0.0::double precision"
    " ELSE {0} / {1} END"
)


def _sum_of(sign: str) -> str:
    towards_zero = f"sign({{0}}) {'<>' if sign == '+' else '='} sign({{1}})"
    return (
        f"CASE WHEN greatest(abs({{0}}), abs({{1}})) < 8e307 OR {towards_zero} OR least(abs({{0}}), abs({{1}})) < 1e291"
        f" OR abs({{0}}) < {doubles.LARGEST} - abs({{1}}) THEN {{0}} {sign} {{1}} END"
    )


def _arithmetic(name: str, args: Sequence[Value]) -> Value:
    args = _with_exact_constants(args)
    if name != "/" and all(value.kind == "integer" for value in args):
        return Value("integer", f"({args[0].sql} {name} {args[1].sql})")
    scales = common_scales(value.kind for value in args)
    if name != "/" and scales is not None:
        scale = sum(scales) if name == "*" else max(scales)
        if scale <= MAX_DIGITS:
            return Value(decimal_type(scale), f"({args[0].sql} {name} {args[1].sql})")
    numbers = [_as_number(f"'{name}'", value) for value in args]
    template = {"*": _PRODUCT, "/": _QUOTIENT}.get(name) or _sum_of(name)
    return Value("number", _bind(template, *numbers))


def _negate(_name: str, args: Sequence[Value]) -> Value:
    if args[0].kind in _EXACT_TYPES:
        return Value(args[0].kind, f"(- {args[0].sql})")
    return Value("number", f"(- {_as_number('-', args[0]).sql})")


def _mod(name: str, args: Sequence[Value]) -> Value:
    args = _with_exact_constants(args)
    for value in args:
        if value.kind not in _EXACT_TYPES:
            raise ExpressionError(f"{name} takes integers and decimals, not a {value.kind}")
    scales = common_scales(value.kind for value in args)
    kind = "integer" if scales is None else decimal_type(max(scales))
    return Value(kind, f"mod({args[0].sql}, nullif({args[1].sql}, 0))")


def _compare(name: str, args: Sequence[Value]) -> Value:
    if any(value.kind == "null" for value in args):
        raise ExpressionError(f"'{name} NULL' is never true; write IS NULL or IS NOT NULL")
    kind, (a, b) = _unify(f"'{name}'", args)
    if kind == "boolean" and name not in ("=", "<>"):
        raise ExpressionError(f"'{name}' does not order booleans; use = or <>")
    return Value("boolean", f"({a.sql} {name} {b.sql})")


def _logic(name: str, args: Sequence[Value]) -> Value:
    return Value("boolean", "(" + f" {name} ".join(_as_condition(name, value) for value in args) + ")")


def _not(name: str, args: Sequence[Value]) -> Value:
    return Value("boolean", f"(NOT {_as_condition(name, args[0])})")


def _is(name: str, args: Sequence[Value]) -> Value:
    tested = args[0].sql if name == "IS NULL" else _as_condition(name, args[0])
    return Value("boolean", f"({tested} {name})")


def _in(name: str, args: Sequence[Value]) -> Value:
    if any(not value.simple or value.kind == "null" for value in args[1:]):
        raise ExpressionError("IN takes constants other than NULL; for other values, write 'x = a OR x = b'")
    _, (tested, *listed) = _unify(name, args)
    return Value("boolean", f"({tested.sql} IN ({', '.join(value.sql for value in listed)}))")


def _choose(name: str, args: Sequence[Value]) -> Value:
    kind, values = _unify(name, args)
    if name in ("GREATEST", "LEAST") and kind not in (*NUMERIC, *DECIMALS, "timestamp"):
        raise ExpressionError(f"{name} takes numbers or timestamps, not a {kind}")
    if name == "NULLIF" and kind in DECIMALS and args[0].kind in _EXACT_TYPES:
        kind = args[0].kind
    function = "COALESCE" if name == "IFNULL" else name
    return Value(kind, f"{function}({', '.join(value.sql for value in values)})")


def _if(_name: str, args: Sequence[Value]) -> Value:
    return _case([_as_condition("IF", args[0])], args[1:])


def _rounding(name: str, args: Sequence[Value]) -> Value:
    if args[0].kind == "integer":
        return args[0]
    down_or_up = "floor" if name == "FLOOR" else "ceil"
    digits = _digits(args[1]) if len(args) > 1 else 0
    if (scale := scale_of(args[0].kind)) is not None:
        if name != "ROUND":
            return Value("integer", f"{down_or_up}({args[0].sql})")
        kind = decimal_type(min(digits, scale)) if digits else "integer"
        return Value(kind, f"round({args[0].sql}, {min(digits, scale)})")
    value = _as_number(name, args[0])
    if name != "ROUND":
        return Value("number", f"{down_or_up}({value.sql})")
    scaled = f"(abs({{0}}) * 1e{digits}::double precision)"
    whole = f"(floor({scaled}) + ({scaled} - floor({scaled}) >= 0.5)::integer) / 1e{digits}::double precision"
    # A double beyond 2^52 has no fraction.
    return Value(
        "number",
        _bind(
            f"CASE WHEN abs({{0}}) >= 4503599627370496 / 1e{digits} THEN {{0}} ELSE sign({{0}}) * {whole} END", value
        ),
    )


def _digits(value: Value) -> int:
    text = value.sql.removesuffix("::numeric")
    if not (value.kind == "integer" and value.simple and text.isdigit() and int(text) <= 15):
        raise ExpressionError("ROUND: the number of digits must be a constant integer from 0 to 15")
    return int(text)


def _absolute(name: str, args: Sequence[Value]) -> Value:
    value = args[0] if args[0].kind in _EXACT_TYPES else _as_number(name, args[0])
    kind = "integer" if name == "SIGN" and value.kind in DECIMALS else value.kind
    return Value(kind, f"{name.lower()}({value.sql})")


def _float_function(name: str, args: Sequence[Value]) -> Value:
    value = _as_number(name, args[0])
    if name == "SQRT":
        return Value("number", _bind("CASE WHEN {0} >= 0 THEN sqrt({0}) END", value))
    function = "ln" if name == "LN" else "log"
    return Value("number", _bind(f"CASE WHEN {{0}} > 0 THEN {function}({{0}}) END", value))


_MANY = 256
_Builder = Callable[[str, Sequence[Value]], Value]
_OPERATORS: dict[str, tuple[int, int, _Builder]] = {
    **dict.fromkeys(("+", "-", "*", "/"), (2, 2, _arithmetic)),
    **dict.fromkeys(("=", "<>", "<", "<=", ">", ">="), (2, 2, _compare)),
    **dict.fromkeys(("AND", "OR"), (2, _MANY, _logic)),
    **dict.fromkeys(("IS NULL", "IS TRUE", "IS FALSE"), (1, 1, _is)),
    "NOT": (1, 1, _not),
    "NEGATE": (1, 1, _negate),
    "%": (2, 2, _mod),
    "IN": (2, _MANY, _in),
}
_NAMED_FUNCTIONS: dict[str, tuple[int, int, _Builder]] = {
    **dict.fromkeys(("ABS", "SIGN"), (1, 1, _absolute)),
    **dict.fromkeys(("FLOOR", "CEIL", "CEILING"), (1, 1, _rounding)),
    **dict.fromkeys(("SQRT", "LN", "LOG10"), (1, 1, _float_function)),
    **dict.fromkeys(("COALESCE", "GREATEST", "LEAST"), (1, _MANY, _choose)),
    **dict.fromkeys(("IFNULL", "NULLIF"), (2, 2, _choose)),
    "ROUND": (1, 2, _rounding),
    "MOD": (2, 2, _mod),
    "IF": (3, 3, _if),
}
_FUNCTIONS = _OPERATORS | _NAMED_FUNCTIONS
FUNCTION_NAMES = tuple(sorted(_NAMED_FUNCTIONS))
