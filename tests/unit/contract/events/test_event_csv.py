"""Tests of CSV: reading by column gives the same values and errors as reading line by line."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill_contract.events.formats.csv_columns import CsvReader
from tidemill_contract.events.formats.csv_lines import CsvLines, without_paths
from tidemill_contract.events.formats.opened_reader import OpenedReader
from tidemill_contract.resource.spec import PipelineSpec

NOW_MS = 1_700_000_000_000
TIMES = ["1699999999999", "2023-11-14T22:13:19Z", "2023-11-14T22:13:19.123456+01:00"]
USUAL: dict[str, list[str]] = {
    "at": TIMES,
    "day": ["14.11.2023 10:00", "01.01.2020 00:59"],
    "seconds": ["1699999999", "0"],
    "shop": ["a", "Zürich", " b ", "null", "12"],
    "number": ["1", "-2.5", "0.1", "1e3", "-0", "12345678901234567890", " 4 "],
    "count": ["1", "-0", "9223372036854775807", "-9223372036854775808", "\t7"],
    "price": ["1", "-0.05", "12.50", "99999999.99", "0"],
    "paid": ["true", "false", " true"],
    "plan": ["pro"],
}
BREAKS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
"""Python's `splitlines` splits at these characters, but they do not end lines of CSV."""
ODD = [
    "", " ", "1.", ".5", "01", "+1", "1_0", "1.0", "1e400", "-", "nan", "null", "true", "True",
    '"a"', '"a,b"', '""', "x\0",
    "\ufeff1", "1\n2", "1\n", "a\rb", "9223372036854775808", "1.234", "1e2", "123456789.5", "2023-11-14",
    "12:00", "99:99",
    "2023-11-14T22:13:19", "4102444800000", "x" * 2000, f"-1{'0' * 330}",
    *BREAKS, *(f"a{each}b" for each in BREAKS),
]  # fmt: skip
FIELDS: list[dict[str, Any]] = [
    {"name": "at", "type": "timestamp", "required": True},
    {"name": "day", "type": "timestamp", "format": "%d.%m.%Y %H:%M", "zone": "Europe/Berlin"},
    {"name": "seconds", "type": "timestamp", "format": "s"},
    {"name": "shop", "type": "string", "required": True},
    {"name": "number", "type": "number"},
    {"name": "count", "type": "integer"},
    {"name": "price", "type": "decimal", "precision": 10, "scale": 2},
    {"name": "paid", "type": "boolean"},
    {"name": "plan", "type": "string", "default": "free"},
    {"name": "same", "type": "string", "path": "number"},
    {"name": "origin", "type": "string", "from": "header"},
]


def spec_of(record_format: Any = "csv") -> PipelineSpec:
    metrics = [{"name": "n", "function": "count"}]
    by_shop = {
        "name": "a", "groupBy": ["shop"], "window": {"type": "tumbling", "size": "1m"}, "metrics": metrics,
    }  # fmt: skip
    source = {"format": record_format, "fields": FIELDS, "eventTime": {"field": "at"}}
    return PipelineSpec.model_validate({"source": source, "aggregations": [by_shop]})


SPEC = spec_of()
AT_ONCE, ONE_BY_ONE = CsvReader(SPEC, exact=True), OpenedReader(without_paths(SPEC), CsvLines(SPEC), exact=True)
COLUMNS = st.tuples(
    *(st.sampled_from([usual, *([each] for each in usual), [*usual, ""], [*usual, *ODD]]) for usual in USUAL.values())
)


def decoded_by(reader: OpenedReader, raws: list[bytes]) -> Any:
    """Return values, errors and microseconds as texts, which distinguish 0.0 from -0.0, and 1 from True."""
    decoded = reader.read(raws, NOW_MS, ())
    valid = [event for event in decoded.events if event is not None]
    values = {field["name"]: repr(reader.values(valid, field["name"])) for field in FIELDS}
    errors = {index: str(error) for index, error in decoded.invalid.items()}
    return [event is None for event in decoded.events], values, errors, decoded.micros or [0] * len(raws)


@settings(max_examples=300)
@given(st.data())
def test_reading_by_column_agrees_with_reading_line_by_line(data: st.DataObject) -> None:
    columns = data.draw(COLUMNS)
    row = st.tuples(*(st.sampled_from(cells) for cells in columns))
    rows = data.draw(st.lists(row, min_size=1, max_size=5))
    ends = data.draw(st.sampled_from(["", "\n", ",", "\r\n"]))
    raws = [(",".join(row) + (ends if index == 1 else "")).encode() for index, row in enumerate(rows)]
    assert decoded_by(AT_ONCE, raws) == decoded_by(ONE_BY_ONE, raws)


def test_an_unusual_line_makes_only_its_group_of_lines_be_read_line_by_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = ",".join(cells[0] for cells in USUAL.values()).encode()
    raws = [usual] * 200
    raws[70] = b"nothing"
    line_counts: list[int] = []
    read = OpenedReader.read
    monkeypatch.setattr(
        OpenedReader, "read", lambda self, lines, *rest: line_counts.append(len(lines)) or read(self, lines, *rest)
    )
    decoded = AT_ONCE.read(raws, NOW_MS, ())
    assert line_counts == [64]
    assert list(decoded.invalid) == [70]
    assert [event is None for event in decoded.events] == [index == 70 for index in range(200)]


@pytest.mark.parametrize("each", BREAKS)
def test_lines_end_only_at_line_feeds_and_carriage_returns(each: str) -> None:
    """Another line of the batch may be unreadable."""
    usual = [cells[0] for cells in USUAL.values()]
    usual[list(USUAL).index("shop")] = f"a{each}b"
    raw = ",".join(usual).encode()
    for raws in ([raw], [raw, b"nothing"], [raw, b"a\rb", raw + b"\r\n"]):
        decoded = AT_ONCE.read(raws, NOW_MS, ())
        assert list(decoded.invalid) == [1][: len(raws) - 1]
        valid = [event for event in decoded.events if event is not None]
        assert set(AT_ONCE.values(valid, "shop")) == {f"a{each}b"}


def test_columns_may_be_skipped_reordered_and_absent() -> None:
    record_format = {"type": "csv", "columns": ["x", *reversed(USUAL), "y"], "delimiter": ";"}
    spec = spec_of(record_format)
    line = ";".join(["1", *(cells[0] for cells in reversed(USUAL.values())), "2"]).encode()
    at_once = decoded_by(CsvReader(spec, exact=True), [line, line])
    assert at_once == decoded_by(OpenedReader(without_paths(spec), CsvLines(spec), exact=True), [line, line])
    assert at_once[2] == {}
