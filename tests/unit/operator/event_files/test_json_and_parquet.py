"""Tests of reading events from NDJSON, JSON arrays and Parquet."""

from __future__ import annotations

import datetime as dt
import decimal
import gzip
import io
import json
import os
import random
import threading
from pathlib import Path

import polars as pl
import pytest

from tidemill_contract.events.fields import MAX_EVENT_BYTES
from tidemill_contract.resource.source import FieldSpec
from tidemill_operator.event_files.content import EventFileError
from tidemill_operator.event_files.event_file import EventFile, ReadOptions


def sent(
    path: Path | None, fields: list[FieldSpec] | None = None, *, skip: int = 0, **options: str
) -> list[tuple[int, str]]:
    with EventFile(path, ReadOptions(**options)) as file:
        return [(event.line, event.data.decode()) for event in file.events(fields or [], skip)]


def test_lines_are_sent_unchanged(tmp_path: Path) -> None:
    """Broken lines are sent too, and become dead letters. Blank lines are no events."""
    path = tmp_path / "a.ndjson"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n{"a": \n  {"b":2}  \nnull')
    assert sent(path) == [(1, '{"a": 1}'), (3, '{"a":'), (4, '{"b":2}'), (5, "null")]
    assert sent(path, skip=2) == [(4, '{"b":2}'), (5, "null")]
    with EventFile(path) as file:
        assert [value for _, value in file.numbered_values()] == [{"a": 1}, None, {"b": 2}, None]


def test_other_encodings_become_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_bytes('{"a":"ü"}\n'.encode("utf-16"))
    assert sent(path) == [(1, '{"a":"ü"}')]
    path.write_bytes('{"a":"ü"}\n'.encode("cp1252"))
    assert sent(path, encoding="cp1252") == [(1, '{"a":"ü"}')]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
@pytest.mark.parametrize("name", ["a.json", "a"])
@pytest.mark.parametrize("text", ['[{"a":"ü"},{"a":"b"}]', '{"a":"ü"}\n{"a":"b"}\n'])
def test_json_in_utf_16_is_not_taken_for_csv(tmp_path: Path, text: str, name: str, encoding: str) -> None:
    """Neither the name of the file nor a byte order mark is needed."""
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    assert sent(path) == [(1, '{"a":"ü"}'), (2, '{"a":"b"}')]


def test_an_array_in_another_encoding_than_given_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes('[{"a":"ü"}]'.encode("cp1252"))
    assert sent(path, encoding="cp1252") == [(1, '{"a":"ü"}')]
    with pytest.raises(EventFileError, match=r"is not ascii .*check --encoding"):
        sent(path, encoding="ascii")


def test_a_line_is_cut_where_it_is_too_long_for_an_event(tmp_path: Path) -> None:
    """The following lines keep their numbers."""
    path = tmp_path / "a.ndjson"
    path.write_bytes(b"x" * (3 * MAX_EVENT_BYTES) + b'\n{"a":1}\n')
    (first, cut), second = sent(path)
    assert (first, len(cut), second) == (1, MAX_EVENT_BYTES + 1, (2, '{"a":1}'))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.json", '[{"a":\n1}, {"a":2}]', [(1, '{"a":1}'), (2, '{"a":2}')]),
        ("a.json", '{\n "a": 1\n}\n', [(1, '{"a":1}')]),
        ("a.json", '{"a": 1}\n{"a": 2}\n', [(1, '{"a": 1}'), (2, '{"a": 2}')]),
        ("a", '{"a": 1}\n', [(1, '{"a": 1}')]),
    ],
    ids=["an array", "an object over lines", "lines called .json", "no suffix"],
)
def test_lines_arrays_and_single_objects_of_json_give_their_events(
    tmp_path: Path, name: str, text: str, expected: list[tuple[int, str]]
) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert sent(path) == expected


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BufferedReader(io.BytesIO(b'{"a":1}\n{"a":2}\n'), 8)

    monkeypatch.setattr("sys.stdin", Stdin)
    assert sent(None) == [(1, '{"a":1}'), (2, '{"a":2}')]


def test_compressed_standard_input_is_decompressed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BufferedReader(io.BytesIO(gzip.compress(b'{"a":1}\n{"a":2}\n')))

    monkeypatch.setattr("sys.stdin", Stdin)
    assert sent(None) == [(1, '{"a":1}'), (2, '{"a":2}')]


def test_a_pipe_with_a_name_is_read_once(tmp_path: Path) -> None:
    """The shell makes such a pipe from `<(producer)`."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b'{"a":1}\n{"a":2}\n',))
    writer.start()
    assert sent(pipe) == [(1, '{"a":1}'), (2, '{"a":2}')]
    writer.join()


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    time = dt.datetime(2025, 12, 31, 14, 5)
    frame = pl.DataFrame(
        {
            "user": [{"id": 1, "plan": None}, {"id": 2, "plan": "free"}, {"id": 3, "plan": "pro"}],
            "price": [decimal.Decimal("12.50"), None, decimal.Decimal("0.01")],
            "local": [time] * 3,
            "at": [time.replace(tzinfo=dt.UTC)] * 3,
            "day": [dt.date(2025, 12, 31)] * 3,
            "tags": [["a", "b"], [], None],
            "ratio": [0.5, float("nan"), 2.0],
        },
        schema_overrides={"price": pl.Decimal(10, 2), "at": pl.Datetime("us", "UTC")},
    )
    path = tmp_path / "a.parquet"
    frame.write_parquet(path)
    return path


def test_rows_of_parquet_are_objects(parquet: Path) -> None:
    """Decimals keep their digits. A time without a zone is UTC, unless the field has a zone."""
    (_, first), (number, second), _ = sent(parquet)
    assert json.loads(first) == {
        "user": {"id": 1, "plan": None}, "price": 12.5, "local": "2025-12-31T14:05:00Z", "at": "2025-12-31T14:05:00Z",
        "day": "2025-12-31", "tags": ["a", "b"], "ratio": 0.5,
    }  # fmt: skip
    assert '"price":12.50' in first
    assert (number, json.loads(second)["ratio"]) == (2, None)
    zoned = FieldSpec.model_validate({"name": "local", "type": "timestamp", "zone": "Europe/Berlin"})
    assert '"local":"2025-12-31T14:05:00"' in sent(parquet, [zoned])[0][1]
    assert [number for number, _ in sent(parquet, skip=2)] == [3]


def test_parquet_is_not_read_from_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BufferedReader(io.BytesIO(b"PAR1"))

    monkeypatch.setattr("sys.stdin", Stdin)
    with pytest.raises(EventFileError, match="write it to a file first"):
        sent(None)


def test_an_incomplete_last_line_of_a_growing_file_waits(tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    for last, complete in ((b'{"a": ', False), (b'{"a": 2}', True), (b'{"a": \n', True)):
        path.write_bytes(b'{"a": 1}\n' + last)
        with EventFile(path) as file:
            lines = [event.line for event in file.events([], growing=True)]
            assert (lines, file.incomplete_line) == (([1, 2], None) if complete else ([1], 2))


def test_a_truncated_file_is_read_to_its_end_and_then_an_error(tmp_path: Path) -> None:
    random.seed(1)
    lines = b"".join(b'{"a": %d}\n' % random.getrandbits(400) for _ in range(12_000))
    path = tmp_path / "a.ndjson.gz"
    path.write_bytes(gzip.compress(lines)[:-1_000])
    with EventFile(path) as file:
        events = file.events([])
        assert next(events).line == 1
        with pytest.raises(EventFileError, match="cannot be read to its end"):
            list(events)


def test_json_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(EventFileError, match="is not JSON"):
        sent(path)


@pytest.mark.parametrize("value", [2**62, -(2**62)])
def test_a_time_that_python_cannot_hold_is_named_by_its_row(tmp_path: Path, value: int) -> None:
    path = tmp_path / "a.parquet"
    times = pl.Series("at", [0, value]).cast(pl.Datetime("us"))
    pl.DataFrame([times]).write_parquet(path)
    with EventFile(path) as file, pytest.raises(EventFileError, match="parquet, row"):
        list(file.numbered_values())
