"""Tests of the registry of formats, and of Arrow streams, which pyarrow and polars read."""

from __future__ import annotations

import asyncio
import datetime as dt
import io
from collections.abc import AsyncGenerator
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill_api.catalog import PipelineModel
from tidemill_api.formats import reference
from tidemill_api.formats.arrow import ArrowWriter
from tidemill_api.formats.csv import CsvWriter
from tidemill_api.formats.ndjson import NdjsonWriter
from tidemill_api.formats.registry import FORMATS
from tidemill_api.http import openapi
from tidemill_api.query import answers
from tidemill_api.query.listings import DEAD_LETTERS, EVENT_CONVERTERS
from tidemill_api.query.selection import Column
from tidemill_chassis.web.problems import Problem
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig

ROOT = Path(__file__).resolve().parents[3]
T = dt.datetime(2013, 1, 1, 5, tzinfo=dt.UTC)
TOPK = [{"value": "2013-01-01T05:00:00Z", "count": 3, "error": 1}]
MEMBERS = (Column("value", "timestamp"), Column("count", "integer"), Column("error", "integer"))
COLUMNS = [
    Column("k", "string"), Column("i", "integer"), Column("v", "number"), Column("b", "boolean"),
    Column("t", "timestamp"), Column("o", "object"), Column("often", "array", members=MEMBERS),
    Column("windows", "array"),
]  # fmt: skip
ROWS: list[tuple[Any, ...]] = [
    ("a", 1, 1.5, True, T, {"x": [1]}, TOPK, ["b", {"c": 1}]),
    ("", Decimal(2**63 - 1), float("inf"), False, T.replace(microsecond=250_001), "text", [], []),
    (None,) * 8,
    ("ä\0", -(2**63), 2, True, T, [1, "ä"], TOPK * 2, None),
]
READ = [
    {
        "k": "a", "i": 1, "v": 1.5, "b": True, "t": T, "o": '{"x":[1]}',
        "often": [{"value": T, "count": 3, "error": 1}], "windows": ["b", '{"c":1}'],
    },
    {
        "k": "", "i": 2**63 - 1, "v": float("inf"), "b": False, "t": T.replace(microsecond=250_001), "o": "text",
        "often": [], "windows": [],
    },
    dict.fromkeys(["k", "i", "v", "b", "t", "o", "often", "windows"]),
    {
        "k": "ä\0", "i": -(2**63), "v": 2.0, "b": True, "t": T, "o": '[1,"ä"]',
        "often": [{"value": T, "count": 3, "error": 1}] * 2, "windows": None,
    },
]  # fmt: skip


def stream(columns: list[Column], *batches: list[tuple[Any, ...]]) -> bytes:
    """Return the Arrow stream of these batches of rows."""

    async def rows() -> AsyncGenerator[list[tuple[Any, ...]], None]:
        for batch in batches:
            yield batch

    async def work() -> bytes:
        return b"".join([piece async for piece in answers._encode_batches(rows(), ArrowWriter(columns), "x")])

    return asyncio.run(work())


def test_pyarrow_and_polars_read_an_arrow_stream() -> None:
    """The stream contains every type of column, nulls, and a record batch for each batch of rows."""
    written = stream(COLUMNS, ROWS[:2], ROWS[2:])
    table = pa.ipc.open_stream(written).read_all()
    assert [batch.num_rows for batch in table.to_batches()] == [2, 2]
    struct = pa.struct([("value", pa.timestamp("us", "UTC")), ("count", pa.int64()), ("error", pa.int64())])
    assert list(zip(table.schema.names, table.schema.types, strict=True)) == [
        ("k", pa.large_string()), ("i", pa.int64()), ("v", pa.float64()), ("b", pa.bool_()),
        ("t", pa.timestamp("us", "UTC")), ("o", pa.large_string()), ("often", pa.large_list(struct)),
        ("windows", pa.large_list(pa.large_string())),
    ]  # fmt: skip
    assert table.to_pylist() == READ
    assert pl.read_ipc_stream(io.BytesIO(written)).to_dicts() == READ


def test_an_arrow_stream_without_rows_contains_its_columns() -> None:
    written = stream(COLUMNS)
    table = pa.ipc.open_stream(written).read_all()
    assert (table.num_rows, table.schema.names) == (0, [column.name for column in COLUMNS])
    assert pl.read_ipc_stream(io.BytesIO(written)).shape == (0, len(COLUMNS))


@given(
    st.lists(
        st.lists(st.tuples(st.none() | st.text(), st.none() | st.floats(), st.none() | st.booleans()), min_size=1),
        max_size=4,
    )
)
def test_any_batches_are_read_from_an_arrow_stream_as_they_were_written(batches: list[list[tuple[Any, ...]]]) -> None:
    columns = [Column("s", "string"), Column("v", "number"), Column("b", "boolean")]
    table = pa.ipc.open_stream(stream(columns, *batches)).read_all()
    assert [batch.num_rows for batch in table.to_batches()] == [len(batch) for batch in batches]
    assert repr([tuple(row.values()) for row in table.to_pylist()]) == repr([row for batch in batches for row in batch])


def test_arrow_refuses_an_integer_beyond_64_bits() -> None:
    """Other formats contain such integers."""
    with pytest.raises(Problem, match="i: 9223372036854775808 does not fit Arrow's integers of 64 bits") as caught:
        stream(COLUMNS[:2], [("a", Decimal(2**63))])
    assert (caught.value.status, caught.value.code) == (400, "value_too_large")


def test_a_damaged_value_is_null_in_arrow_too() -> None:
    def broken(value: Any) -> Any:
        raise ValueError(value)

    written = stream([Column("k", "string"), Column("n", "integer", decode=broken)], [("a", b"?")])
    assert pa.ipc.open_stream(written).read_all().to_pylist() == [{"k": "a", "n": None}]


def test_arrow_contains_base64_for_keys_and_values_of_dead_letters_that_are_no_text() -> None:
    columns = list(DEAD_LETTERS.columns)
    row = (0, 1, 2, None, "", "not_json", None, None, b"k", b"\xff", b"\xff", 1, T, [0, 2**60], T)
    (read,) = (
        pa.ipc.open_stream(ArrowWriter(columns, DEAD_LETTERS.converters).head() + _rest(columns, row))
        .read_all()
        .to_pylist()
    )
    assert (read["key"], read["value"], read["value_encoding"]) == ("k", "/w==", "base64")
    assert (read["event_time"], read["windows"]) == (T, ["1970-01-01T00:00:00Z", str(2**60)])


def _rest(columns: list[Column], row: tuple[Any, ...]) -> bytes:
    writer = ArrowWriter(columns, DEAD_LETTERS.converters)
    return writer.batch([row]) + writer.tail()


@pytest.mark.parametrize("writer", [ArrowWriter, CsvWriter, NdjsonWriter])
def test_numbers_of_stored_events_keep_all_their_digits(writer: type[ArrowWriter | CsvWriter | NdjsonWriter]) -> None:
    written = writer([Column("data", "object")], EVENT_CONVERTERS).batch(
        [('{"n": 1.10000000000000000001, "m": [1e2, 7]}',)]
    )
    assert written.replace(b'""', b'"').count(b'{"n":1.10000000000000000001,"m":[1e2,7]}') == 1


@pytest.mark.parametrize("kind", ["string", "integer", "number", "boolean", "timestamp"])
def test_frequent_values_have_the_type_of_their_field(kind: str) -> None:
    spec = PipelineSpec.model_validate({
        "source": {
            "topic": {"partitions": 1},
            "fields": [{"name": "ts", "type": "timestamp", "required": True}, {"name": "f", "type": kind}],
            "eventTime": {"field": "ts"},
        },
        "aggregations": [{
            "name": "a", "window": {"type": "tumbling", "size": "1h"},
            "metrics": [{"name": "often", "function": "topk", "field": "f"}, {"name": "n", "function": "count"}],
        }],
    })  # fmt: skip
    model = PipelineModel(
        PipelineConfig(namespace="n", name="p", generation=1, spec=spec, aggregations=(AggregationRef(name="a"),))
    )
    metrics = model.aggregations["a"].metrics
    assert [(member.name, member.kind) for member in metrics["often"][0].members] == [
        ("value", kind), ("count", "integer"), ("error", "integer"),
    ]  # fmt: skip
    assert metrics["n"][0].members == ()


def test_the_documentation_of_formats_is_up_to_date() -> None:
    assert reference.render() == (ROOT / "docs" / "reference" / "formats.md").read_text(), "run: make generate"


def test_every_format_is_described_by_openapi() -> None:
    path = "/v1/pipelines/{pipeline}/aggregates/{aggregation}"
    paths = openapi.document()["paths"]
    content = paths[path]["get"]["responses"]["200"]["content"]
    assert set(content) == {format_.media_type for format_ in FORMATS.values()}
    for suffix, fmt in FORMATS.items():
        (media_type,) = paths[f"{path}.{suffix}"]["get"]["responses"]["200"]["content"]
        assert media_type == fmt.media_type
