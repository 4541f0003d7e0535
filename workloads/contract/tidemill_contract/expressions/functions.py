"""The functions of filter and derive expressions: arguments, result types and polars expressions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import polars as pl

from tidemill_contract.decimals import DECIMALS
from tidemill_contract.expressions import decimals, texts, timestamps
from tidemill_contract.expressions.syntax import ExpressionError
from tidemill_contract.expressions.values import (
    NUMERIC,
    POLARS_TYPES,
    WIDE,
    Builder,
    FunctionRow,
    Result,
    TypedExpression,
    as_boolean,
    as_number,
    as_string,
    can_compare,
    constant,
    finite,
    literal,
    narrow,
    narrow_decimal,
    quotient,
    unify,
    unsigned_zero,
)

_AGGREGATES = frozenset(
    (  # noqa: SIM905 - one line for each name would hide the table below
        "SUM AVG MEAN COUNT MIN MAX FIRST LAST STDDEV VARIANCE VAR MEDIAN QUANTILE MODE ARRAY_AGG STRING_AGG"
        " FIRST_VALUE LAST_VALUE ROW_NUMBER RANK DENSE_RANK LAG LEAD NTILE CUME_DIST APPROX_COUNT_DISTINCT"
    ).split()
)
UNSTABLE = frozenset(("RANDOM", "RAND", "NOW", "CURRENT_TIMESTAMP", "CURRENT_DATE", "TODAY", "UUID", "GEN_RANDOM_UUID"))
_CAST_TYPES = {
    **dict.fromkeys(("INTEGER", "BIGINT", "INT", "INT8", "LONG"), "integer"),
    **dict.fromkeys(("NUMBER", "DOUBLE", "FLOAT", "REAL", "FLOAT8"), "number"),
    **dict.fromkeys(("STRING", "VARCHAR", "TEXT"), "string"),
    **dict.fromkeys(("BOOLEAN", "BOOL"), "boolean"),
    "TIMESTAMP": "timestamp",
}


def apply_function(name: str, args: Sequence[TypedExpression]) -> TypedExpression:
    """Apply an operator or a function, or raise ExpressionError for wrong arguments."""
    if name in _AGGREGATES:
        raise ExpressionError(
            f"{name} uses several events; write a metric in aggregations[].metrics (for two values: GREATEST, LEAST)"
        )
    if name in UNSTABLE:
        raise ExpressionError(f"{name} gives a different value at each call; use fields of the event")
    entry = _FUNCTIONS.get(name)
    if entry is None:
        close = difflib.get_close_matches(name, FUNCTION_NAMES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known functions: {', '.join(FUNCTION_NAMES)}"
        raise ExpressionError(f"unknown function {name}; {hint}")
    least, most, build = entry
    if not least <= len(args) <= most:
        count = str(least) if least == most else f"{least} to {most}" if most < _MANY else f"at least {least}"
        raise ExpressionError(f"{name} takes {count} argument{'' if count == '1' else 's'}, not {len(args)}")
    kind, expression = build(name, args)
    factor = 2 if name in _DOUBLING else 1
    fixed = all(argument.fixed for argument in args)
    return TypedExpression(expression, kind, 1 + factor * sum(argument.size for argument in args), fixed=fixed)


def case_when(branches: Sequence[tuple[TypedExpression, TypedExpression]], default: TypedExpression) -> TypedExpression:
    """Return a `CASE WHEN` expression.

    Its value is the value of the first branch with a true condition, else the default.

    Raises:
        ExpressionError: a condition is not boolean, or the values are of different types.
    """
    for condition, _ in branches:
        as_boolean("CASE WHEN", condition)
    kind, values = unify("CASE", [value for _, value in branches] + [default])
    expression = values[-1]
    for (condition, _), value in zip(reversed(branches), reversed(values[:-1]), strict=True):
        expression = pl.when(as_boolean("CASE WHEN", condition)).then(value).otherwise(expression)
    parts = [*(part for branch in branches for part in branch), default]
    return TypedExpression(
        expression, kind, 1 + sum(part.size for part in parts), fixed=all(part.fixed for part in parts)
    )


def _arithmetic(name: str, args: Sequence[TypedExpression]) -> Result:
    if (built := decimals.arithmetic(name, args)) is not None:
        return built
    floats = [as_number(f"'{name}'", argument) for argument in args]
    if name == "/":
        return "number", quotient(*floats)
    if all(argument.kind == "integer" for argument in args):
        # Compute with 128 bits, because an operation on 64-bit integers cannot overflow 128 bits. `narrow` replaces a
        # result beyond 64 bits with NULL.
        a, b = (argument.expression.cast(WIDE) for argument in args)
        return "integer", narrow({"+": a + b, "-": a - b, "*": a * b}[name])
    a, b = floats
    return "number", finite({"+": a + b, "-": a - b, "*": a * b}[name])


def _mod(name: str, args: Sequence[TypedExpression]) -> Result:
    if (built := decimals.arithmetic(name, args)) is not None:
        return built
    for argument in args:
        if argument.kind != "integer":
            taken = "integers and decimals"
            raise ExpressionError(f"{name} takes {taken}, not a {argument.kind}; convert with TRY_CAST(… AS integer)")
    # In SQL, the remainder has the dividend's sign. In polars, the remainder has the divisor's sign.
    a, b = (argument.expression.cast(WIDE) for argument in args)
    return "integer", narrow(a.sign() * (a.abs() % b.abs()))


def _negate(_name: str, args: Sequence[TypedExpression]) -> Result:
    return _arithmetic("-", [literal(0) if args[0].kind in ("integer", *DECIMALS) else literal(0.0), args[0]])


_MIRRORED = {"=": "=", "<>": "<>", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


def _compare(name: str, args: Sequence[TypedExpression]) -> Result:
    kind, (a, b) = unify(f"'{name}'", args, compared=True)
    if kind == "boolean" and name not in ("=", "<>"):
        raise ExpressionError(f"'{name}' does not order booleans; use = or <>")
    if any(argument.kind == "null" for argument in args):
        raise ExpressionError(f"'{name} NULL' is never true; write IS NULL or IS NOT NULL")
    if not can_compare(*args):
        name, a, b = _MIRRORED[name], b, a
    table = {"=": a == b, "<>": a != b, "<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b}
    return "boolean", table[name]


def _logic(name: str, args: Sequence[TypedExpression]) -> Result:
    terms = [as_boolean(name, argument) for argument in args]
    return "boolean", pl.all_horizontal(terms) if name == "AND" else pl.any_horizontal(terms)


def _is(name: str, args: Sequence[TypedExpression]) -> Result:
    if name == "IS NULL":
        return "boolean", args[0].expression.is_null()
    value = as_boolean(name, args[0])
    return "boolean", (value if name == "IS TRUE" else ~value).fill_null(False)


def _in(name: str, args: Sequence[TypedExpression]) -> Result:
    if not all(argument.is_constant and argument.kind != "null" for argument in args[1:]):
        raise ExpressionError("IN takes constants other than NULL; for other values, write 'x = a OR x = b'")
    kind, values = unify(name, args, compared=True)
    if kind == "null":
        return "boolean", args[0].expression
    # The value is compared with each constant, because `is_in` treats NULL differently from SQL.
    return "boolean", pl.any_horizontal([values[0] == value for value in values[1:]])


def _like(name: str, args: Sequence[TypedExpression]) -> Result:
    pattern = constant(name, args[1], "the pattern", "string")
    escape = constant(name, args[2], "ESCAPE", "string") if len(args) > 2 else ""
    if len(args) > 2 and len(escape) != 1:
        raise ExpressionError(f"{name}: ESCAPE takes one character, not '{escape}'; write ESCAPE '!', for example")
    regex, characters = "", iter(pattern)
    for character in characters:
        if character == escape:
            escaped = next(characters, "")
            if escaped not in ("%", "_", escape):
                raise ExpressionError(
                    f"{name}: '{escape}{escaped}' in the pattern is not valid; after the escape, write %, _ or"
                    f" '{escape}'"
                )
            regex += re.escape(escaped)
        else:
            regex += {"%": ".*", "_": "."}.get(character) or re.escape(character)
    flags = "(?s)" if name == "LIKE" else "(?si)"
    return "boolean", as_string(name, args[0]).str.contains(f"{flags}^{regex}$")


def _coalesce(name: str, args: Sequence[TypedExpression]) -> Result:
    kind, values = unify(name, args, compared=True)
    return kind, narrow_decimal(kind, pl.coalesce(values))


def _nullif(name: str, args: Sequence[TypedExpression]) -> Result:
    kind, (a, b) = unify(name, args, compared=True)
    differs = a.ne_missing(b) if can_compare(*args) else b.ne_missing(a)
    if kind in DECIMALS and args[0].kind in ("integer", *DECIMALS):
        kind, a = args[0].kind, args[0].expression
    return kind, narrow_decimal(kind, pl.when(differs | b.is_null()).then(a))


def _if(_name: str, args: Sequence[TypedExpression]) -> Result:
    result = case_when([(args[0], args[1])], args[2])
    return result.kind, result.expression


def _extreme(name: str, args: Sequence[TypedExpression]) -> Result:
    kind, values = unify(name, args, compared=True)
    if kind not in (*NUMERIC, *DECIMALS, "timestamp"):
        raise ExpressionError(f"{name} takes numbers or timestamps, not a {kind}")
    return kind, narrow_decimal(kind, (pl.max_horizontal if name == "GREATEST" else pl.min_horizontal)(values))


def _rounding(name: str, args: Sequence[TypedExpression]) -> Result:
    digits = constant(name, args[1], "the number of digits", "integer", 0, 15) if len(args) > 1 else 0
    value = as_number(name, args[0])
    if args[0].kind == "integer":
        return "integer", args[0].expression
    if args[0].kind in DECIMALS:
        return decimals.round_decimal(name, args[0], digits)
    match name:
        case "ROUND":
            return "number", finite(value.round(digits, mode="half_away_from_zero"))
        case "FLOOR":
            return "number", value.floor()
    return "number", value.ceil()


def _abs(name: str, args: Sequence[TypedExpression]) -> Result:
    value = as_number(name, args[0])
    if args[0].kind in ("integer", *DECIMALS):
        wide = args[0].expression.cast(WIDE)
        return (args[0].kind, narrow(wide.abs())) if name == "ABS" else ("integer", narrow(wide.sign()))
    return "number", value.abs() if name == "ABS" else value.sign()


def _float_function(name: str, args: Sequence[TypedExpression]) -> Result:
    a, *rest = (as_number(name, argument) for argument in args)
    match name:
        case "SQRT":
            result = a.sqrt()
        case "LN":
            result = a.log()
        case "LOG10":
            result = a.log10()
        case "EXP":
            result = a.exp()
        case _:
            result = a.pow(rest[0])
    return "number", finite(result)


def _text(name: str, args: Sequence[TypedExpression]) -> Result:
    value = as_string(name, args[0])
    match name:
        case "LENGTH":
            return "integer", value.str.len_chars().cast(pl.Int64())
        case "LOWER":
            return "string", value.str.to_lowercase()
        case "UPPER":
            return "string", value.str.to_uppercase()
        case "TRIM":
            return "string", value.str.strip_chars()
        case "LTRIM":
            return "string", value.str.strip_chars_start()
    return "string", value.str.strip_chars_end()


def _substring(name: str, args: Sequence[TypedExpression]) -> Result:
    value = as_string(name, args[0])
    if name == "LEFT":
        return "string", value.str.slice(0, constant(name, args[1], "the length", "integer"))
    start = constant(name, args[1], "the start (from 1)", "integer", 1)
    length = constant(name, args[2], "the length", "integer") if len(args) > 2 else None
    return "string", value.str.slice(start - 1, length)


def _find(name: str, args: Sequence[TypedExpression]) -> Result:
    value, part = as_string(name, args[0]), constant(name, args[1], "the text to search for", "string")
    match name:
        case "STARTS_WITH":
            return "boolean", value.str.starts_with(part)
        case "ENDS_WITH":
            return "boolean", value.str.ends_with(part)
        case "CONTAINS":
            return "boolean", value.str.contains(part, literal=True)
    if not part:
        raise ExpressionError("REPLACE: the text to search for must not be empty")
    replacement = constant(name, args[2], "the replacement", "string")
    return "string", value.str.replace_all(part, replacement, literal=True)


def _concat(name: str, args: Sequence[TypedExpression]) -> Result:
    values = [_to_string(argument) for argument in args]
    return "string", pl.concat_str(values, ignore_nulls=name == "CONCAT")


def _to_string(argument: TypedExpression) -> pl.Expr:
    match argument.kind:
        case "timestamp":
            return argument.expression.dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ")
        case "boolean":
            return pl.when(argument.expression).then(pl.lit("true")).when(~argument.expression).then(pl.lit("false"))
        case "number":
            return unsigned_zero(argument.expression).cast(pl.String())
    if argument.kind in DECIMALS:
        return decimals.to_text(argument)
    return argument.expression.cast(pl.String())


def _try_cast(name: str, args: Sequence[TypedExpression]) -> Result:
    source, type_name = args[0], str(args[1].constant)
    if type_name.startswith(decimals.DECIMAL_NAMES):
        return decimals.to_decimal(name, source, type_name)
    kind = _CAST_TYPES.get(type_name)
    if kind is None:
        raise ExpressionError(
            f"{name} does not support the type {type_name}; use integer, number, decimal(18, 2), string, boolean or"
            " timestamp"
        )
    if source.kind in DECIMALS:
        return decimals.from_decimal(source, kind)
    value = source.expression
    if source.kind in (kind, "null"):
        return kind, value.cast(POLARS_TYPES[kind])
    match source.kind, kind:
        case _, "string":
            return kind, _to_string(source)
        case "timestamp", "integer":
            return kind, value.dt.epoch("ms")
        case "integer", "timestamp":
            return kind, pl.when(value.is_between(timestamps.MIN_MS, timestamps.MAX_MS)).then(value).cast(
                POLARS_TYPES[kind]
            )
        case "string" | "integer" | "boolean", "number":
            return kind, finite(value.cast(pl.Float64(), strict=False))
        case "string" | "number" | "boolean", "integer":
            return kind, narrow(value)
        case "integer" | "number", "boolean":
            return kind, value != 0
        case "string", "boolean":
            lowered = value.str.to_lowercase()
            return kind, pl.when(lowered == "true").then(pl.lit(True)).when(lowered == "false").then(pl.lit(False))
    raise ExpressionError(f"a {source.kind} cannot be converted to a {kind}; declare the field as {kind}")


_MANY = 256


def _table(*rows: FunctionRow) -> dict[str, tuple[int, int, Builder]]:
    return {name: (least, most, build) for names, least, most, build in rows for name in names.split(",")}


_OPERATORS = _table(
    ("+,-,*,/", 2, 2, _arithmetic),
    ("%", 2, 2, _mod),
    ("NEGATE", 1, 1, _negate),
    ("=,<>,<,<=,>,>=", 2, 2, _compare),
    ("AND,OR", 2, _MANY, _logic),
    ("NOT", 1, 1, lambda name, args: ("boolean", ~as_boolean(name, args[0]))),
    ("IS NULL,IS TRUE,IS FALSE", 1, 1, _is),
    ("IN", 2, _MANY, _in),
    ("LIKE,ILIKE", 2, 3, _like),
    ("||", 2, 2, _concat),
    ("TRY_CAST", 2, 2, _try_cast),
)
_NAMED_FUNCTIONS = _table(
    ("ABS,SIGN", 1, 1, _abs),
    ("ROUND", 1, 2, _rounding),
    ("FLOOR,CEIL,CEILING", 1, 1, _rounding),
    ("SQRT,LN,LOG10,EXP", 1, 1, _float_function),
    ("POW,POWER", 2, 2, _float_function),
    ("MOD", 2, 2, _mod),
    ("COALESCE", 1, _MANY, _coalesce),
    ("IFNULL", 2, 2, _coalesce),
    ("NULLIF", 2, 2, _nullif),
    ("IF", 3, 3, _if),
    ("GREATEST,LEAST", 1, _MANY, _extreme),
    ("LENGTH,LOWER,UPPER,TRIM,LTRIM,RTRIM", 1, 1, _text),
    ("SUBSTR,SUBSTRING", 2, 3, _substring),
    ("LEFT", 2, 2, _substring),
    ("STARTS_WITH,ENDS_WITH,CONTAINS", 2, 2, _find),
    ("REPLACE", 3, 3, _find),
    ("CONCAT", 1, _MANY, _concat),
    *texts.FUNCTIONS,
    *timestamps.FUNCTIONS,
)
_FUNCTIONS = _OPERATORS | _NAMED_FUNCTIONS
_DOUBLING = frozenset(("%", "MOD", "NULLIF", "IN", "||", "CONCAT", "TRY_CAST", *texts.DOUBLING, *timestamps.DOUBLING))
FUNCTION_NAMES = tuple(sorted([*_NAMED_FUNCTIONS, "EXTRACT", "TRY_CAST"]))
