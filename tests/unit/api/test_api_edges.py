"""Tests of texts that the API reads and writes: values, parameters, rows, media types and etags."""

from __future__ import annotations

import asyncio
import csv
import datetime as dt
import io
import json
import threading
from collections.abc import AsyncGenerator
from decimal import Decimal
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill_api.database_errors import as_problem
from tidemill_api.formats.csv import CsvWriter
from tidemill_api.formats.json import page_body
from tidemill_api.formats.ndjson import NdjsonWriter
from tidemill_api.formats.offload import run_encoder
from tidemill_api.formats.registry import negotiate
from tidemill_api.http.replies import etag_matches
from tidemill_api.query import answers
from tidemill_api.query.aggregate import MEMBERS
from tidemill_api.query.listings import DEAD_LETTERS
from tidemill_api.query.parameters import Parameters
from tidemill_api.query.selection import Column
from tidemill_api.query.values import cast_type, kind_converter, parse_time, parse_value, to_text
from tidemill_chassis.web.problems import Problem

T = dt.datetime(2013, 1, 1, 5, tzinfo=dt.UTC)
TIMES = [
    ("2013-01-01T05:00:00Z", T),
    ("2013-01-01t05:00:00z", T),
    ("2013-01-01 00:00:00-05:00", T),
    ("2013-01-01T06:00:00+01:00", T),
    ("2013-01-01T06:00:00 01:00", T),  # A URL has turned the plus into a blank.
    ("2013-01-01T05:00:00.123456789Z", T.replace(microsecond=123456)),
    ("1357016400000", T),
    ("-1", dt.datetime(1969, 12, 31, 23, 59, 59, 999000, tzinfo=dt.UTC)),
]


@pytest.mark.parametrize(("text", "moment"), TIMES)
def test_times_are_read_in_every_notation(text: str, moment: dt.datetime) -> None:
    assert parse_time(text) == moment


@pytest.mark.parametrize(
    "text",
    ["", "now", "2013-01", "2013-01-01T05:00:00", "2013-02-30T00:00:00Z", "9" * 30, "0000-01-01T00:00:00Z",
     "2013-01-01T05:00:00Z\n", "0001-01-01T00:00:00+05:00", "٢٠١٣-01-01T05:00:00Z", "2013-01-01T24:00:01Z"],
)  # fmt: skip
def test_a_text_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"time|years"):
        parse_time(text)


VALUES: list[tuple[str, str, Any]] = [
    ("42", "integer", 42),
    ("-2.0", "integer", -2),
    ("-9223372036854775809", "integer", -(2**63) - 1),
    ("1e3", "number", 1000.0),
    (".5", "number", 0.5),
    ("true", "boolean", True),
    ("ä'\"\\", "string", "ä'\"\\"),
    ("", "string", ""),
]


@pytest.mark.parametrize(("text", "kind", "value"), VALUES)
def test_a_value_is_read_as_the_type_of_its_column(text: str, kind: str, value: Any) -> None:
    assert parse_value(text, kind) == value


@pytest.mark.parametrize(
    ("text", "kind"),
    [("1.5", "integer"), ("٣", "integer"), ("1" * 41, "integer"), ("1e999", "number"), ("nan", "number"),
     ("inf", "number"), ("1_000", "number"), ("True", "boolean"), ("1", "boolean"), ("a\0b", "string"),
     ("\ud800", "string"), ("{}", "object")],
)  # fmt: skip
def test_an_invalid_value_is_refused_with_the_type_of_its_column(text: str, kind: str) -> None:
    with pytest.raises(ValueError, match=kind):
        parse_value(text, kind)


@given(
    st.integers(-(2**70), 2**70).map(lambda v: ("integer", v))
    | st.floats(allow_nan=False, allow_infinity=False).map(lambda v: ("number", v))
    | st.booleans().map(lambda v: ("boolean", v))
    | st.datetimes(timezones=st.just(dt.UTC)).map(lambda v: ("timestamp", v))
)
def test_a_value_that_is_written_as_text_is_read_as_the_same_value(pair: tuple[str, Any]) -> None:
    """Cursors contain values as texts."""
    kind, value = pair
    assert parse_value(to_text(value), kind) == value


def test_integers_beyond_64_bits_are_cast_to_numeric() -> None:
    assert [cast_type(v, "integer") for v in (0, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1)] == [
        "bigint", "bigint", "numeric", "bigint", "numeric",
    ]  # fmt: skip


@pytest.mark.parametrize("value", [0, -(2**63), 2**63 - 1, 2**64, -(2**70), 10**30])
def test_json_contains_all_digits_of_integers_beyond_64_bits(value: int) -> None:
    convert = kind_converter("integer")
    assert convert is not None
    assert json.loads(msgspec.json.encode([convert(Decimal(value))])) == [value]


QUERIES: list[tuple[bytes, dict[str, list[str]]]] = [
    (b"", {}),
    (b"a=1&a=2&b=", {"a": ["1", "2"], "b": [""]}),
    (b"a=%C3%A4+b%2Cc", {"a": ["ä b,c"]}),
]


@pytest.mark.parametrize(("query", "given_values"), QUERIES)
def test_query_strings_are_decoded_and_repeated_parameters_are_kept(
    query: bytes, given_values: dict[str, list[str]]
) -> None:
    assert Parameters.from_query(query).unread == given_values


@pytest.mark.parametrize("query", [b"a=%ff", b"\xff=1", b"&".join(b"a%d=1" % n for n in range(101))])
def test_a_query_string_that_is_no_utf8_or_has_too_many_parameters_is_refused(query: bytes) -> None:
    with pytest.raises(Problem, match="invalid_query_string"):
        Parameters.from_query(query)


def test_lists_are_split_in_query_strings_only() -> None:
    """In a JSON body, a list contains the values itself."""
    assert Parameters.from_query(b"x=a,b&x=c").pop_list("x") == ["a", "b", "c"]
    body = b'{"x__in": ["a,b", 1, 2.5, true], "group_by": ["a,b"], "limit": 5.0}'
    parameters = Parameters.from_json(body, MEMBERS)
    assert (parameters.pop_list("x__in"), parameters.pop_list("group_by")) == (["a,b", "1", "2.5", "true"], ["a,b"])
    assert (parameters.pop_list("x"), parameters.pop_one("limit")) == (None, "5")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"1", b"[]", b'{"x": null}', b'{"x": {}}', b'{"x__in": [[1]]}', b'{"x": "\\ud800"}',
        b'{"x": [1]}', b'{"limit": "10"}', b'{"limit": [10]}', b'{"limit": 10.5}', b'{"limit": true}',
        b'{"closed": "true"}', b'{"group_by": "k"}', b'{"group_by": [1]}', b'{"tz": 1}', b'{"from": false}',
    ],
)  # fmt: skip
def test_an_invalid_json_body_is_answered_with_400(body: bytes) -> None:
    with pytest.raises(Problem) as caught:
        Parameters.from_json(body, MEMBERS)
    assert caught.value.status == 400


def test_a_parameter_is_read_once_and_unknown_parameters_are_refused() -> None:
    parameters = Parameters.from_query(b"a=1&b=2&b=3&c=x&odd=1")
    assert parameters.pop_one("a") == "1"
    assert parameters.pop_one("a") is None
    with pytest.raises(Problem, match="given 2 times"):
        parameters.pop_one("b")
    with pytest.raises(Problem, match="not one of y, z"):
        parameters.pop_choice("c", ("y", "z"))
    with pytest.raises(Problem, match="known parameters: a, b") as caught:
        parameters.refuse_unknown(["a", "b"])
    assert caught.value.extra == {"parameter": "odd"}


COLUMNS = [
    Column("k", "string"), Column("i", "integer"), Column("v", "number"), Column("b", "boolean"),
    Column("t", "timestamp"), Column("o", "object"),
]  # fmt: skip
ROWS: list[tuple[Any, ...]] = [
    ("a", 1, 1.5, True, T, {"x": [1]}),
    ("", Decimal(2**70), float("nan"), False, T.replace(microsecond=250_000), None),
    (None, None, None, None, None, None),
    ('q"uo,te\r\n', -5, 1e300, True, T, [1, "ä"]),
]


def test_ndjson_contains_one_row_per_line_and_null_for_nan() -> None:
    lines = NdjsonWriter(COLUMNS).batch(ROWS).splitlines()
    assert [json.loads(line) for line in lines] == [
        {"k": "a", "i": 1, "v": 1.5, "b": True, "t": "2013-01-01T05:00:00Z", "o": {"x": [1]}},
        {"k": "", "i": 2**70, "v": None, "b": False, "t": "2013-01-01T05:00:00.250Z", "o": None},
        dict.fromkeys("kivbto"),
        {"k": 'q"uo,te\r\n', "i": -5, "v": 1e300, "b": True, "t": "2013-01-01T05:00:00Z", "o": [1, "ä"]},
    ]


def test_csv_follows_rfc_4180_and_distinguishes_null_from_an_empty_text() -> None:
    writer = CsvWriter(COLUMNS)
    text = (writer.head() + writer.batch(ROWS)).decode()
    assert text.split("\r\n")[:4] == [
        "k,i,v,b,t,o",
        'a,1,1.5,true,2013-01-01T05:00:00Z,"{""x"":[1]}"',
        '"",1180591620717411303424,nan,false,2013-01-01T05:00:00.250Z,',
        ",,,,,",
    ]
    assert list(csv.reader(io.StringIO(text, newline="")))[4][0] == 'q"uo,te\r\n'


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=2, max_size=4))
def test_any_text_is_read_from_csv_as_it_was_written(texts: list[str]) -> None:
    """Texts that look like formulas get an apostrophe."""
    columns = [Column(f"c{n}", "string") for n in range(len(texts))]
    written = CsvWriter(columns).batch([texts]).decode()
    (row,) = csv.reader(io.StringIO(written, newline=""))
    assert [cell.removeprefix("'") if text != cell else cell for text, cell in zip(texts, row, strict=True)] == texts
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) for cell in row)


def test_a_page_contains_columns_rows_and_the_next_cursor() -> None:
    page = json.loads(page_body(COLUMNS[:1], [{"k": "a"}], "next", stats={"rows": 1}))
    assert page == {
        "meta": [{"name": "k", "type": "string"}], "data": [{"k": "a"}], "next_cursor": "next", "truncated": True,
        "stats": {"rows": 1},
    }  # fmt: skip


ACCEPTED = [
    (None, None, "JSON"),
    (None, "*/*", "JSON"),
    (None, "text/html, application/xhtml+xml", "JSON"),
    (None, "text/csv", "CSV"),
    (None, "application/json;q=0.5, application/x-ndjson", "NDJSON"),
    (None, "application/ndjson;q=0.2, text/csv;q=0.1", "NDJSON"),
    (None, "text/csv;q=0", "JSON"),
    (None, "text/csv;q=high", "JSON"),
    ("csv", "application/json", "CSV"),
    ("ndjson", None, "NDJSON"),
    (None, "application/vnd.apache.arrow.stream", "Arrow"),
    ("arrow", "text/csv", "Arrow"),
]


@pytest.mark.parametrize(("suffix", "accept", "name"), ACCEPTED)
def test_a_suffix_or_the_accept_header_chooses_the_format(suffix: str | None, accept: str | None, name: str) -> None:
    assert negotiate(suffix, accept).name == name


@pytest.mark.parametrize(
    ("header", "same"),
    [(None, False), ("", False), ("*", True), ('W/"a"', True), ('"a"', True), ('"b", W/"a"', True), ('"b"', False)],
)
def test_an_etag_matches_its_weak_and_its_strong_form(header: str | None, same: bool) -> None:
    assert etag_matches(header, 'W/"a"') is same


@pytest.mark.parametrize(
    ("value", "text", "encoding"),
    [
        (b"text", "text", "utf-8"),
        (b"\xff\x00", "/wA=", "base64"),
        (None, None, None),
        (("x" * 4_095 + "ä").encode()[:4_096], "x" * 4_095, "utf-8"),  # The value was cut within a character.
        (b"x\xc3", "eMM=", "base64"),  # The value was not cut.
    ],
)
def test_values_of_dead_letters_are_text_if_possible_and_base64_otherwise(
    value: bytes | None, text: str | None, encoding: str | None
) -> None:
    assert DEAD_LETTERS.converters["value"](value) == text
    assert DEAD_LETTERS.converters["value_encoding"](value) == encoding


def test_a_query_beyond_the_limits_of_postgres_is_answered_with_400() -> None:
    """Postgres raises the error if the sketches of an answer exceed 1 GB."""
    problem = as_problem(psycopg.errors.ProgramLimitExceeded("out of memory"), "shop")
    assert problem is not None
    assert (problem.status, problem.code) == (400, "query_too_large")
    assert "shorter range" in problem.detail


SKETCHED = [Column("n", "integer"), Column("often", "array", decode=lambda value: threading.current_thread().name)]


@pytest.mark.parametrize(
    ("columns", "rows", "in_thread"), [(SKETCHED[:1], 5, False), (SKETCHED[:1], 5_000, True), (SKETCHED, 1, True)]
)
def test_sketches_and_many_rows_are_encoded_outside_of_the_event_loop(
    columns: list[Column], rows: int, in_thread: bool
) -> None:
    async def work() -> str:
        return await run_encoder(columns, [()] * rows, lambda: threading.current_thread().name)

    assert (asyncio.run(work()) != threading.current_thread().name) is in_thread


def test_streams_decode_sketches_outside_of_the_event_loop() -> None:
    """The API answers other requests meanwhile."""

    async def batches() -> AsyncGenerator[list[tuple[Any, ...]], None]:
        yield [(1, b"")]

    async def work() -> bytes:
        return b"".join([piece async for piece in answers._encode_batches(batches(), NdjsonWriter(SKETCHED), "x")])

    (line,) = asyncio.run(work()).splitlines()
    assert json.loads(line)["often"] != threading.current_thread().name
