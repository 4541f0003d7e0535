"""The text functions of filter and derive expressions, for example for JSON and hashes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence

import polars as pl

from tidemill_contract.expressions.syntax import ExpressionError
from tidemill_contract.expressions.values import FunctionRow, Result, TypedExpression, as_string, constant

_JSON_PATH = re.compile(r"\$(?:\.[A-Za-z_]\w*|\[\d{1,6}\]|\['[^'\\]+'\])*", re.ASCII)
_WORD = re.compile(r"[^\W_]+")
_HASHES: dict[str, Callable[[bytes], str]] = {
    "MD5": lambda value: hashlib.md5(value, usedforsecurity=False).hexdigest(),
    "SHA256": lambda value: hashlib.sha256(value).hexdigest(),
}


def _pattern(name: str, argument: TypedExpression) -> str:
    pattern = str(constant(name, argument, "the pattern", "string"))
    try:
        pl.select(pl.lit("").str.contains(pattern))
    except pl.exceptions.PolarsError as error:
        reasons = [line.removeprefix("error: ") for line in str(error).splitlines() if line.startswith("error: ")]
        raise ExpressionError(
            f"{name}: '{pattern}' is not a regular expression ({(reasons or ['too large'])[0]});"
            " write a pattern without look-around and back-references"
        ) from None
    return pattern


def _regexp(name: str, args: Sequence[TypedExpression]) -> Result:
    value, pattern = as_string(name, args[0]), _pattern(name, args[1])
    if name == "REGEXP_LIKE":
        return "boolean", value.str.contains(pattern)
    group = constant(name, args[2], "the group", "integer", 0, 99) if len(args) > 2 else 0
    if group > _count_groups(pattern):
        raise ExpressionError(
            f"{name}: '{pattern}' has no group {group}; groups are numbered from 1, and 0 is the whole match"
        )
    return "string", value.str.extract(pattern, group)


def _count_groups(pattern: str) -> int:
    # `extract_groups` fails for a pattern without groups, so `|()` adds a group. The returned number does not include
    # this group.
    return len(pl.Series([""]).str.extract_groups(f"{pattern}|()").struct.fields) - 1


def _split_part(name: str, args: Sequence[TypedExpression]) -> Result:
    value, delimiter = as_string(name, args[0]), constant(name, args[1], "the delimiter", "string")
    place = constant(name, args[2], "the place", "integer", -10_000, 10_000)
    if not delimiter or place == 0:
        places = "the first part has number 1, the last part has number -1, and 0 is not allowed"
        what = places if delimiter else "the delimiter must not be empty"
        raise ExpressionError(f"{name}: {what}")
    part = value.str.split(delimiter).list.get(place - 1 if place > 0 else place, null_on_oob=True)
    return "string", pl.when(value.is_not_null()).then(part.fill_null(""))


def _map_texts(argument: pl.Expr, function: Callable[[str], str]) -> pl.Expr:
    def convert(texts: pl.Series) -> pl.Series:
        values = [None if text is None else function(text) for text in texts.to_list()]
        return pl.Series(texts.name, values, dtype=pl.String)

    return argument.map_batches(convert, return_dtype=pl.String(), is_elementwise=True)


def _title(name: str, args: Sequence[TypedExpression]) -> Result:
    # As in Postgres, a digit can begin a word, so INITCAP leaves "1st" unchanged.
    return "string", _map_texts(
        as_string(name, args[0]), lambda text: _WORD.sub(lambda word: word[0].capitalize(), text)
    )


def _json(name: str, args: Sequence[TypedExpression]) -> Result:
    value, path = as_string(name, args[0]), str(constant(name, args[1], "the path", "string"))
    if not _JSON_PATH.fullmatch(path):
        raise ExpressionError(f"{name}: '{path}' is not a path; write a path such as '$.user.id' or '$.tags[0]'")
    return "string", value.str.json_path_match(path)


def _hash(name: str, args: Sequence[TypedExpression]) -> Result:
    digest = _HASHES[name]
    return "string", _map_texts(as_string(name, args[0]), lambda text: digest(text.encode()))


FUNCTIONS: tuple[FunctionRow, ...] = (
    ("REGEXP_LIKE", 2, 2, _regexp),
    ("REGEXP_EXTRACT", 2, 3, _regexp),
    ("SPLIT_PART", 3, 3, _split_part),
    ("INITCAP", 1, 1, _title),
    ("JSON_VALUE", 2, 2, _json),
    ("MD5,SHA256", 1, 1, _hash),
)
DOUBLING = ("SPLIT_PART",)
"""The functions that use an argument twice in their polars expression."""
