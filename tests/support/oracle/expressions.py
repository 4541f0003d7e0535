"""Computes filter and derive expressions in plain Python: the result of SQL, and NULL where SQL would fail.

Of the platform, this module uses only the parser. Values are int, float, str, bool, aware datetimes and None. Functions
whose last bit depends on the library (`LN`, `EXP`, `POW`, …) are not supported.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from oracle.expression_functions import FUNCTIONS
from tidemill_contract.expressions.syntax import Call, Case, Column, Literal, Node, parse

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MILLISECOND = dt.timedelta(milliseconds=1)
_CASTS = {
    "INTEGER": "integer", "BIGINT": "integer", "NUMBER": "number", "DOUBLE": "number", "STRING": "string",
    "VARCHAR": "string", "BOOLEAN": "boolean", "TIMESTAMP": "timestamp",
}  # fmt: skip
_DERIVED_BYTES = 1_024

Row = Mapping[str, Any]
Computed = Callable[[Row], Any]


def compiled(text: str, types: Mapping[str, str]) -> tuple[str, Computed]:
    """Return the type of a valid expression over columns of these types, and a function that computes it for a row."""
    kind, compute = _compile(parse(text), types)

    def final(row: Row) -> Any:
        value = compute(row)
        if isinstance(value, str) and len(value.encode()) > _DERIVED_BYTES:
            return None
        return _plain(value)

    return kind, final


def epoch_ms(moment: dt.datetime) -> int:
    """Return milliseconds since the epoch, rounded down."""
    return (moment - EPOCH) // _MILLISECOND


def moment_of(ms: int) -> dt.datetime:
    """Return the time of epoch milliseconds."""
    return EPOCH + ms * _MILLISECOND


def _plain(value: Any) -> Any:
    """Return a value as the platform stores it: a float without a negative zero, or None if it is not finite."""
    if isinstance(value, float):
        return value + 0.0 if math.isfinite(value) else None
    return value


def _compile(node: Node, types: Mapping[str, str]) -> tuple[str, Computed]:
    match node:
        case Literal(value):
            kinds = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
            return kinds[type(value)], lambda _: value
        case Column(name):
            return types[name], lambda row: row[name]
        case Case(branches, default):
            conditions = [_compile(condition, types)[1] for condition, _ in branches]
            kind, values = _united([*(_compile(value, types) for _, value in branches), _compile(default, types)])
            return kind, lambda row: _first_true(conditions, values, row)
        case Call(name, args):
            return _call(name, args, types)
    raise TypeError(node)


def _first_true(conditions: Sequence[Computed], values: Sequence[Computed], row: Row) -> Any:
    """Return the value of the first condition that is true, or the last value if no condition is true."""
    for condition, value in zip(conditions, values, strict=False):
        if condition(row) is True:
            return value(row)
    return values[-1](row)


def _united(typed: Sequence[tuple[str, Computed]]) -> tuple[str, list[Computed]]:
    """Return the common type of expressions, and functions that compute them as this type.

    An integer among numbers becomes a number, and a string among times becomes a time.
    """
    kinds = {kind for kind, _ in typed} - {"null"}
    if kinds == {"integer", "number"}:
        return "number", [_floating(compute) for _, compute in typed]
    if kinds == {"string", "timestamp"}:
        return "timestamp", [_timed(compute) if kind == "string" else compute for kind, compute in typed]
    (kind,) = kinds or {"null"}
    return kind, [compute for _, compute in typed]


def _floating(compute: Computed) -> Computed:
    def found(row: Row) -> float | None:
        value = compute(row)
        return None if value is None else float(value)

    return found


def _timed(compute: Computed) -> Computed:
    def found(row: Row) -> dt.datetime:
        return moment_of(epoch_ms(dt.datetime.fromisoformat(compute(row))))

    return found


def _call(name: str, args: tuple[Node, ...], types: Mapping[str, str]) -> tuple[str, Computed]:
    if name in ("AND", "OR"):
        terms = [_compile(arg, types)[1] for arg in args]
        return "boolean", lambda row: _logic(name, [term(row) for term in terms])
    typed = [_compile(arg, types) for arg in args]
    kinds = [kind for kind, _ in typed]
    if name in _UNITED:
        kind, computed = _united(typed)
        return "boolean" if name in _COMPARED or name == "IN" else kind, _of_all(_UNITED[name], computed)
    if name == "IF":
        kind, (yes, no) = _united(typed[1:])
        condition = typed[0][1]
        return kind, lambda row: yes(row) if condition(row) is True else no(row)
    if name == "TRY_CAST":
        wanted = _CASTS[str(args[1].value) if isinstance(args[1], Literal) else ""]
        return wanted, _strict(lambda value: _cast(value, wanted), typed[:1])
    if name in ("+", "-", "*", "/", "NEGATE"):
        if name == "/" or set(kinds) - {"null"} != {"integer"}:
            return "number", _strict(_FLOATS[name], [(kind, _floating(compute)) for kind, compute in typed])
        return "integer", _strict(lambda *values: _sized(_INTEGERS[name](*values)), typed)
    if name == "DATE_PART":
        part = str(args[0].value) if isinstance(args[0], Literal) else ""
        return "number" if part.upper() == "EPOCH" else "integer", _strict(
            lambda moment: _date_part(part, moment), typed[1:]
        )
    function, own = _FUNCTIONS[name]
    compute = _of_all(function, [c for _, c in typed]) if name in _SEES_NULL else _strict(function, typed)
    return own or kinds[0], compute


def _of_all(function: Callable[..., Any], computed: Sequence[Computed]) -> Computed:
    return lambda row: _plain(function(*(compute(row) for compute in computed)))


def _strict(function: Callable[..., Any], typed: Sequence[tuple[str, Computed]]) -> Computed:
    """Return a function that is NULL if an argument is NULL or if the computation fails."""

    def found(row: Row) -> Any:
        values = [compute(row) for _, compute in typed]
        if any(value is None for value in values):
            return None
        try:
            return _plain(function(*values))
        except (ZeroDivisionError, OverflowError, ValueError):
            return None

    return found


def _logic(name: str, values: list[bool | None]) -> bool | None:
    decisive = name == "OR"
    if decisive in values:
        return decisive
    return None if None in values else not decisive


def _sized(value: int) -> int | None:
    return value if -(2**63) <= value < 2**63 else None


def _compared(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool | None]:
    return lambda a, b: None if a is None or b is None else compare(a, b)


def _mod(a: int, b: int) -> int:
    rest = abs(a) % abs(b)
    return -rest if a < 0 else rest


def _round(value: Any, digits: int = 0) -> Any:
    if isinstance(value, int):
        return value
    scale = 10.0**digits
    scaled = abs(value) * scale
    if not math.isfinite(scaled) or scaled >= 2**52:
        return value
    whole = math.floor(scaled)
    return math.copysign((whole + (scaled - whole >= 0.5)) / scale, value)


def _cut(function: Callable[[float], int]) -> Callable[[Any], Any]:
    return lambda value: value if isinstance(value, int) else float(function(value))


def _substring(text: str, start: int, length: int | None = None) -> str:
    return text[start - 1 : None if length is None else start - 1 + length]


def _like(pattern: str, flags: re.RegexFlag) -> re.Pattern[str]:
    return re.compile("".join(".*" if c == "%" else "." if c == "_" else re.escape(c) for c in pattern), flags | re.S)


def text_of(value: Any) -> str:
    """Return a value as `||`, `CONCAT` and `TRY_CAST(… AS string)` write it. Floats are not supported."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dt.datetime):
        return value.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"
    return str(value)


def _cast(value: Any, wanted: str) -> Any:
    match wanted, value:
        case "string", _:
            return text_of(value)
        case "boolean", str():
            return {"true": True, "false": False}.get(value.lower())
        case "boolean", _:
            return value != 0
        case "timestamp", int() if not isinstance(value, bool):
            return moment_of(value) if -62_135_596_800_000 <= value <= 253_402_300_799_999 else None
        case "integer", dt.datetime():
            return epoch_ms(value)
        case "integer", str():
            return _sized(int(value)) if re.fullmatch(r"[+-]?\d+", value, re.A) else None
        case "integer", _:
            return _sized(int(value))
        case "number", str():
            return float(value) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", value, re.A) else None
        case "number", _:
            return float(value)
    return value


def _date_part(part: str, moment: dt.datetime) -> Any:
    days = {"DOY": moment.timetuple().tm_yday, "WEEK": moment.isocalendar().week, "QUARTER": (moment.month + 2) // 3}
    days |= {"DOW": moment.isoweekday() % 7, "ISODOW": moment.isoweekday()}
    if part.upper() == "EPOCH":
        return epoch_ms(moment) / 1000
    return days[part.upper()] if part.upper() in days else getattr(moment, part.lower())


def _coalesce(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _extreme(pick: Callable[[list[Any]], Any]) -> Callable[..., Any]:
    def found(*values: Any) -> Any:
        known = [value for value in values if value is not None]
        return pick(known) if known else None

    return found


_COMPARED: dict[str, Callable[..., Any]] = {
    "=": _compared(lambda a, b: a == b), "<>": _compared(lambda a, b: a != b), "<": _compared(lambda a, b: a < b),
    "<=": _compared(lambda a, b: a <= b), ">": _compared(lambda a, b: a > b), ">=": _compared(lambda a, b: a >= b),
}  # fmt: skip
_UNITED: dict[str, Callable[..., Any]] = _COMPARED | {
    "IN": lambda value, *listed: None if value is None else value in listed,
    "COALESCE": _coalesce,
    "IFNULL": _coalesce,
    "NULLIF": lambda a, b: None if a is not None and a == b else a,
    "GREATEST": _extreme(max),
    "LEAST": _extreme(min),
}
_INTEGERS: dict[str, Callable[..., int]] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "NEGATE": lambda a: -a,
}  # fmt: skip
_FLOATS: dict[str, Callable[..., float]] = {**_INTEGERS, "/": lambda a, b: a / b}
_SEES_NULL = frozenset({"IS NULL", "IS TRUE", "IS FALSE", "CONCAT"})
# For each name: the function in Python, and the type of its result, or None for the type of the first argument.
_FUNCTIONS: dict[str, tuple[Callable[..., Any], str | None]] = {
    "%": (_mod, "integer"),
    "MOD": (_mod, "integer"),
    "NOT": (lambda value: not value, "boolean"),
    "IS NULL": (lambda value: value is None, "boolean"),
    "IS TRUE": (lambda value: value is True, "boolean"),
    "IS FALSE": (lambda value: value is False, "boolean"),
    "LIKE": (lambda text, pattern: bool(_like(pattern, re.NOFLAG).fullmatch(text)), "boolean"),
    "ILIKE": (lambda text, pattern: bool(_like(pattern, re.I).fullmatch(text)), "boolean"),
    "||": (lambda a, b: text_of(a) + text_of(b), "string"),
    "CONCAT": (lambda *values: "".join(text_of(value) for value in values if value is not None), "string"),
    "ABS": (lambda value: _sized(abs(value)) if isinstance(value, int) else abs(value), None),
    "SIGN": (lambda value: type(value)((value > 0) - (value < 0)), None),
    "ROUND": (_round, None),
    "FLOOR": (_cut(math.floor), None),
    "CEIL": (_cut(math.ceil), None),
    "CEILING": (_cut(math.ceil), None),
    "SQRT": (math.sqrt, "number"),
    "LENGTH": (len, "integer"),
    "LOWER": (str.lower, "string"),
    "UPPER": (str.upper, "string"),
    "TRIM": (str.strip, "string"),
    "LTRIM": (str.lstrip, "string"),
    "RTRIM": (str.rstrip, "string"),
    "SUBSTR": (_substring, "string"),
    "SUBSTRING": (_substring, "string"),
    "LEFT": (lambda text, length: text[:length], "string"),
    "STARTS_WITH": (str.startswith, "boolean"),
    "ENDS_WITH": (str.endswith, "boolean"),
    "CONTAINS": (lambda text, part: part in text, "boolean"),
    "REPLACE": (str.replace, "string"),
    **FUNCTIONS,
}
