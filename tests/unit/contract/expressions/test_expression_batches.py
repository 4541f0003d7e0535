"""Tests of expressions over batches: the result of an event does not depend on other events of its batch."""

from __future__ import annotations

import datetime as dt
import random
import re
from typing import Any

import polars as pl
import pytest
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st

from oracle.draw_expressions import Drawer
from oracle.expressions import compiled
from pipelines.transforms import BIG, NOTHING, ROW, SCHEMA, SUNDAY, TYPES, spec
from tidemill_contract.expressions.compiler import ExpressionError, Transform, compile_transform

NUMBERS = st.deferred(
    lambda: st.one_of(
        st.sampled_from(
            [
                "i",
                "j",
                "f",
                "0",
                "1",
                "2.5",
                "-3",
                str(BIG),
                "1e300",
                "LENGTH(s)",
                "EXTRACT(HOUR FROM t)",
                "EXTRACT(EPOCH FROM t)",
            ]
        ),
        st.builds("({} {} {})".format, NUMBERS, st.sampled_from("+-*/"), NUMBERS),
        st.builds(
            "{}({})".format,
            st.sampled_from(["ABS", "SIGN", "ROUND", "FLOOR", "CEIL", "SQRT", "LN", "LOG10", "EXP"]),
            NUMBERS,
        ),
        st.builds("POW({}, {})".format, NUMBERS, NUMBERS),
        st.builds("COALESCE({}, {})".format, NUMBERS, NUMBERS),
        st.builds("GREATEST({}, {})".format, NUMBERS, NUMBERS),
        st.builds("NULLIF({}, {})".format, NUMBERS, NUMBERS),
        st.builds("TRY_CAST({} AS integer)".format, st.one_of(NUMBERS, TEXTS)),
        st.builds("CASE WHEN {} THEN {} ELSE {} END".format, CONDITIONS, NUMBERS, NUMBERS),
    )
)
TEXTS = st.deferred(
    lambda: st.one_of(
        st.sampled_from(["s", "'a'", "''"]),
        st.builds("{}({})".format, st.sampled_from(["UPPER", "LOWER", "TRIM"]), TEXTS),
        st.builds("({} || {})".format, TEXTS, TEXTS),
        st.builds("CONCAT({}, {})".format, TEXTS, NUMBERS),
        st.builds("SUBSTR({}, 2, 3)".format, TEXTS),
        st.builds("TRY_CAST({} AS string)".format, st.one_of(NUMBERS, CONDITIONS, st.just("t"))),
    )
)
CONDITIONS = st.deferred(
    lambda: st.one_of(
        st.sampled_from(["b", "TRUE", "t > '2013-01-01T00:00:00Z'", "s LIKE 'a%'", "i IN (1, 2)", "s IS NULL"]),
        st.builds("({} {} {})".format, NUMBERS, st.sampled_from(["<", "<=", "=", "<>", ">"]), NUMBERS),
        st.builds("({} {} {})".format, CONDITIONS, st.sampled_from(["AND", "OR"]), CONDITIONS),
        st.builds("(NOT {})".format, CONDITIONS),
        st.builds("({} = {})".format, TEXTS, TEXTS),
    )
)
ROWS = st.fixed_dictionaries(
    {
        "s": st.none()
        | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
        | st.just("12"),
        "i": st.none() | st.integers(-(2**63), BIG) | st.integers(-3, 3),
        "j": st.none() | st.integers(-(2**63), BIG) | st.integers(-3, 3),
        "f": st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.5, 2.5]),
        "b": st.none() | st.booleans(),
        "t": st.none()
        | st.datetimes(timezones=st.just(dt.UTC)).map(lambda t: t.replace(microsecond=t.microsecond // 1000 * 1000)),
    }
)


@settings(max_examples=100, deadline=None)
@given(st.one_of(NUMBERS, TEXTS, CONDITIONS), CONDITIONS, st.lists(ROWS, min_size=1, max_size=5))
@example(
    "EXTRACT(EPOCH FROM t)",
    "TRUE",
    [NOTHING, {**NOTHING, "t": dt.datetime(1901, 1, 1, 0, 0, 0, 10_000, tzinfo=dt.UTC)}],
)
@example("f / 3", "TRUE", [{**NOTHING, "f": 5.0}, NOTHING])
@example("i * j", "i / j > 2", [{**NOTHING, "i": BIG, "j": BIG}, {**ROW, "j": 0}])
def test_random_expressions_give_each_event_the_same_result_alone_and_in_a_batch(
    expression: str, where: str, rows: list[dict[str, Any]]
) -> None:
    """No values of events make an expression fail."""
    try:
        transform = compile_transform(spec(expression, where=where))
    except ExpressionError:
        return
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    whole = transform.apply(frame)
    single = pl.concat([transform.apply(frame.slice(i, 1)) for i in range(len(rows))])
    assert whole.rows() == single.rows()
    if whole.schema["d0"] == pl.Float64():
        assert whole["d0"].is_finite().all(), "a number must be finite or NULL"


TEXT = st.text(st.sampled_from("ab%_!\\ÜüßK\n.*[]") | st.characters(exclude_categories=["Cs"]), max_size=8)
TEXT = TEXT.filter(lambda text: "\0" not in text)
WILD = {"%": ".*", "_": "."}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["any", "one", "text"]), TEXT), max_size=5), st.sampled_from("!\\%_ü'^"), TEXT
)
def test_like_with_an_escape_matches_the_same_texts_as_a_regular_expression(
    parts: list[tuple[str, str]], escape: str, subject: str
) -> None:
    """Texts are escaped. A wild card that is the escape character is not used."""
    pattern, regex, matching = "", "", ""
    for kind, text in parts:
        wild = {"any": "%", "one": "_"}.get(kind)
        if wild is not None and wild != escape:
            pattern, regex = pattern + wild, regex + WILD[wild]
            matching += text if wild == "%" else "x"
        else:
            pattern += re.sub(f"[%_{re.escape(escape)}]", lambda match: escape + match.group(), text)
            regex, matching = regex + re.escape(text), matching + text
    quoted = [f"'{text.replace(chr(39), chr(39) * 2)}'" for text in (pattern, escape)]
    transform = compile_transform(spec(f"s LIKE {quoted[0]} ESCAPE {quoted[1]}"))
    rows = [{**NOTHING, "s": subject}, {**NOTHING, "s": matching}, NOTHING]
    results = transform.apply(pl.DataFrame(rows, schema=SCHEMA, orient="row"))["d0"].to_list()
    assert results == [re.fullmatch(regex, subject, re.DOTALL) is not None, True, None]


VALUES: dict[str, list[Any]] = {
    "s": [None, "", "a", "Ab c ", " it's", "12", "true", "é🌊"],
    "i": [None, 0, 1, -3, 7, BIG, -BIG - 1, 2**53 + 1],
    "j": [None, 0, 1, 2, -3],
    "f": [None, 0.0, -0.0, 2.5, -1.5, 1e300, -1e-300, 0.5],
    "b": [None, True, False],
    "t": [None, SUNDAY, dt.datetime(1, 1, 1, tzinfo=dt.UTC), dt.datetime(2026, 3, 1, 11, 0, 0, 5000, tzinfo=dt.UTC)],
}


def drawn_rows(rnd: random.Random) -> list[dict[str, Any]]:
    """Return no row, one row, several, equal, or empty rows, as polars handles columns of equal values differently."""
    rows = [{name: rnd.choice(values) for name, values in VALUES.items()} for _ in range(5)]
    return rnd.choice([[], rows[:1], rows, rows[:1] * 4, [NOTHING] * 3])


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_random_valid_expressions_give_the_same_results_as_a_model_in_python(seed: int) -> None:
    """The model computes row by row, and zero has no sign."""
    rnd = random.Random(seed)
    rows, types, texts = drawn_rows(rnd), dict(TYPES), list[str]()
    for number in range(2):
        texts.append(Drawer(rnd, types).draw(rnd.choice(sorted(set(TYPES.values())))))
        types[f"d{number}"] = compiled(texts[-1], types)[0]
    where = Drawer(rnd, types).draw("boolean", 2)
    try:
        transform = compile_transform(spec(*texts, where=where))
    except ExpressionError:
        reject()  # The expression is too large.
    expected = []
    for row in rows:
        derived = dict(row)
        for number, text in enumerate(texts):
            derived[f"d{number}"] = compiled(text, types)[1](derived)
        if compiled(where, types)[1](derived) is True:
            expected.append((derived["d0"], derived["d1"]))
    frame = transform.apply(pl.DataFrame(rows, schema=SCHEMA, orient="row"))
    assert comparable(frame.select("d0", "d1").rows()) == comparable(expected), (texts, where)


def comparable(rows: list[tuple[Any, ...]]) -> list[list[str]]:
    """Return the values as texts, which distinguish 1 from 1.0, and 0.0 from -0.0."""
    return [[repr(v.timestamp() if isinstance(v, dt.datetime) else v) for v in row] for row in rows]


@pytest.mark.parametrize(
    "expression",
    [
        "3 >= NULLIF(-3, i)", "2.0 <= COALESCE(2.0, f)", "0 < CASE WHEN i < 5 THEN 1 ELSE 2 END", "1 + 1 = IF(b, 2, 2)",
        "NULLIF(3, NULLIF(2, i)) = 3", "CASE 2 WHEN NULLIF(2, i) THEN TRUE END", "3 BETWEEN NULLIF(2, i) AND 5",
        "'2013-01-01T00:00:00Z' < TRY_CAST(NULLIF(1770000000123, i) AS timestamp)",
    ],
)  # fmt: skip
def test_a_constant_is_compared_with_a_column_of_equal_values(expression: str) -> None:
    frame = pl.DataFrame([ROW] * 3, schema=SCHEMA, orient="row")
    transform = compile_transform(spec(expression, where=expression))
    assert transform.apply(frame)["d0"].to_list() == [True] * 3
    again = compile_transform(spec("2", "3 > d0", where="3 > d0 AND d1"))
    assert again.apply(frame)["d1"].to_list() == [True] * 3


def test_a_single_result_of_polars_is_repeated_for_every_row() -> None:
    """Polars may return a single value for an expression over many rows."""
    short = pl.lit(3) >= pl.coalesce(pl.lit(3), pl.col("i"))
    frame = pl.DataFrame([ROW] * 3, schema=SCHEMA, orient="row")
    assert Transform((("d0", "boolean", short.alias("d0")),), None).apply(frame)["d0"].to_list() == [True] * 3
