"""Functions of timestamps (UTC, milliseconds) in filter and derive expressions."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import polars as pl

from tidemill_contract.expressions.syntax import ExpressionError
from tidemill_contract.expressions.values import (
    POLARS_TYPES,
    FunctionRow,
    Result,
    TypedExpression,
    as_number,
    as_string,
    constant,
    parse_time_constant,
    quotient,
)

MIN_MS, MAX_MS = -62_135_596_800_000, 253_402_300_799_999
"""The years 1 to 9999."""
_TYPE = POLARS_TYPES["timestamp"]
_PARTS: dict[str, Callable[[pl.Expr], pl.Expr]] = {
    "YEAR": lambda t: t.dt.year(),
    "QUARTER": lambda t: t.dt.quarter(),
    "MONTH": lambda t: t.dt.month(),
    "WEEK": lambda t: t.dt.week(),
    "DAY": lambda t: t.dt.day(),
    "DOY": lambda t: t.dt.ordinal_day(),
    "DOW": lambda t: t.dt.weekday() % 7,
    "ISODOW": lambda t: t.dt.weekday(),
    "HOUR": lambda t: t.dt.hour(),
    "MINUTE": lambda t: t.dt.minute(),
    "SECOND": lambda t: t.dt.second(),
}
_TRUNCATION_UNITS = {
    "SECOND": "1s", "MINUTE": "1m", "HOUR": "1h", "DAY": "1d", "WEEK": "1w", "MONTH": "1mo", "QUARTER": "1q",
    "YEAR": "1y",
}  # fmt: skip
_UNITS_MS = {
    "MILLISECOND": 1, "SECOND": 1000, "MINUTE": 60_000, "HOUR": 3_600_000, "DAY": 86_400_000, "WEEK": 604_800_000,
}  # fmt: skip
_DIRECTIVE = re.compile(r"\.%f|%.", re.DOTALL)
_DIRECTIVES = ("%Y", "%y", "%m", "%b", "%B", "%d", "%j", "%H", "%I", "%M", "%S", ".%f", "%p", "%z", "%%")
_YEARS, _MONTHS = ("%Y", "%y"), ("%m", "%b", "%B")
_DATES = ({"%Y", "%j"}, *({year, month, "%d"} for year in _YEARS for month in _MONTHS))
"""The sets of strptime directives that give a complete date."""


def _as_timestamp(name: str, argument: TypedExpression) -> pl.Expr:
    argument = parse_time_constant(argument)
    if argument.kind not in ("timestamp", "null"):
        raise ExpressionError(
            f"{name} takes a timestamp, not a {argument.kind}; declare the field as timestamp, or use TO_TIMESTAMP"
        )
    return argument.expression.cast(_TYPE) if argument.kind == "timestamp" else pl.lit(None, dtype=_TYPE)


def _date_part(name: str, args: Sequence[TypedExpression]) -> Result:
    part = str(constant(name, args[0], "the part", "string")).upper()
    if args[1].kind not in ("timestamp", "null"):
        raise ExpressionError(
            f"{part} can only be taken from a timestamp, not a {args[1].kind}; declare the field as timestamp"
        )
    time = _as_timestamp(name, args[1])
    if part == "EPOCH":
        return "number", quotient(time.dt.epoch("ms").cast(pl.Float64()), pl.lit(1000.0))
    if part not in _PARTS:
        raise ExpressionError(f"a timestamp has no part {part}; write one of EPOCH, {', '.join(_PARTS)}")
    return "integer", _PARTS[part](time).cast(pl.Int64())


def _unit(name: str, argument: TypedExpression, units: dict[str, object]) -> str:
    unit = str(constant(name, argument, "the unit", "string")).upper()
    if unit not in units:
        raise ExpressionError(f"{name} does not support the unit '{unit}'; write one of {', '.join(units)}")
    return unit


def _truncate(name: str, args: Sequence[TypedExpression]) -> Result:
    unit = _TRUNCATION_UNITS[_unit(name, args[0], dict(_TRUNCATION_UNITS))]
    return "timestamp", _as_timestamp(name, args[1]).dt.truncate(unit)


def _difference(name: str, args: Sequence[TypedExpression]) -> Result:
    unit_ms = _UNITS_MS[_unit(name, args[0], dict(_UNITS_MS))]
    first, last = (_as_timestamp(name, argument).dt.epoch("ms") for argument in args[1:])
    # The conversion to Float64 is exact, because a difference of times in milliseconds is below 2^53. The cast to Int64
    # truncates the number of units towards zero.
    return "integer", ((last - first).cast(pl.Float64()) / float(unit_ms)).cast(pl.Int64())


def _to_timestamp(name: str, args: Sequence[TypedExpression]) -> Result:
    if len(args) > 1:
        return "timestamp", _parse(name, args)
    seconds = as_number(name, args[0])
    micros = (seconds * 1e6).round().cast(pl.Int64(), strict=False)
    return "timestamp", _null_out_of_range(micros.floordiv(1000)).cast(_TYPE)


def _null_out_of_range(milliseconds: pl.Expr) -> pl.Expr:
    return pl.when(milliseconds.is_between(MIN_MS, MAX_MS)).then(milliseconds)


def _parse(name: str, args: Sequence[TypedExpression]) -> pl.Expr:
    value, pattern = as_string(name, args[0]), str(constant(name, args[1], "the pattern", "string"))
    used = set(_DIRECTIVE.findall(pattern))
    unknown = sorted(used - set(_DIRECTIVES))
    if unknown or not any(date <= used for date in _DATES):
        error_text = f"{', '.join(unknown)} is unknown" if unknown else "the date is incomplete"
        directives = " ".join(_DIRECTIVES)
        raise ExpressionError(
            f"{name}: in the pattern '{pattern}' {error_text}; write a pattern such as '%d.%m.%Y %H:%M:%S', with"
            f" {directives}"
        )
    pattern = pattern.replace(".%f", "%.f")  # in polars, %.f includes the decimal point
    if used & {"%H", "%I"} and "%M" not in used:
        value, pattern = value + " 00", f"{pattern} %M"  # polars reads an hour only if minutes follow
    try:
        pl.Series(["0"]).str.to_datetime(pattern, strict=False)
    except pl.exceptions.PolarsError as error:
        reason = str(error).partition("\n")[0]
        raise ExpressionError(
            f"{name}: the pattern '{pattern}' cannot be used ({reason}); write a pattern with the hour, such as"
            " '%d.%m.%Y %H:%M:%S'"
        ) from None
    if "%z" in used:
        if len(args) > 2:
            raise ExpressionError(f"{name}: the text has its own offset (%z); remove the zone argument")
        time = value.str.to_datetime(pattern, time_unit="ms", time_zone="UTC", strict=False)
    else:
        zone = _zone(name, args[2]) if len(args) > 2 else "UTC"
        local = value.str.to_datetime(pattern, time_unit="ms", strict=False)
        time = local.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
    return _null_out_of_range(time.dt.epoch("ms")).cast(_TYPE)


def _zone(name: str, argument: TypedExpression) -> str:
    zone = str(constant(name, argument, "the zone", "string"))
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ExpressionError(f"{name}: '{zone}' is not a time zone; write a name such as 'Europe/Berlin'") from None
    return zone


FUNCTIONS: tuple[FunctionRow, ...] = (
    ("DATE_PART", 2, 2, _date_part),
    ("DATE_TRUNC", 2, 2, _truncate),
    ("TIMESTAMPDIFF", 3, 3, _difference),
    ("TO_TIMESTAMP", 1, 3, _to_timestamp),
)
DOUBLING = ("TO_TIMESTAMP",)
"""The functions that use an argument twice in their polars expression."""
