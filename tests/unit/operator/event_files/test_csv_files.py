"""Tests of CSV files: delimiter, encoding and decimal marks are detected, and unreadable files are refused."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tidemill_contract.resource.source import FieldSpec
from tidemill_operator.event_files.content import EventFileError
from tidemill_operator.event_files.csv_dialect import find_dialect, unique_names
from tidemill_operator.event_files.event_file import EventFile, ReadOptions
from tidemill_operator.event_files.numbers import COMMA, POINT, find_decimal, read_number

ROWS = [["id", "name", "amount"], ["1", "Müller", "12,5"], ["2", "Åse", "1.234,75"]]


def field(name: str, kind: str, **more: object) -> FieldSpec:
    return FieldSpec.model_validate({"name": name, "type": kind, **more})


def written(folder: Path, data: bytes, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def rows(path: Path, options: ReadOptions | None = None) -> list[tuple[int, object]]:
    with EventFile(path, options or ReadOptions()) as file:
        return list(file.numbered_values())


def events(path: Path, fields: Sequence[FieldSpec]) -> list[str]:
    with EventFile(path) as file:
        return [event.data.decode() for event in file.events(fields)]


@pytest.mark.parametrize("delimiter", [";", "\t", "|", ","])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_delimiter_and_encoding_are_found(tmp_path: Path, delimiter: str, encoding: str, end: str) -> None:
    """Cells with the delimiter are in quotes."""
    quoted = [[f'"{cell}"' if delimiter in cell else cell for cell in row] for row in ROWS]
    text = end.join(delimiter.join(row) for row in quoted) + end
    expected = [(line, dict(zip(ROWS[0], row, strict=True))) for line, row in enumerate(ROWS[1:], 2)]
    assert rows(written(tmp_path, text.encode(encoding))) == expected


@pytest.mark.parametrize(
    ("text", "delimiter", "columns"),
    [
        ("a;b\n1,5;2,5\n2,5;3,5\n", ";", ("a", "b")),
        ("Datum;Betrag, EUR\n01.02.2025;1,5\n02.02.2025;2,5\n", ";", ("Datum", "Betrag, EUR")),
        ("sep=;\na;b\n1;2\n", ";", ("a", "b")),
        ("a,b\n1,2\n1,2,3\n1\n", ",", ("a", "b")),
        ("only\n1\n2\n", ",", ("only",)),
        ("text\nhello, world\nwell, well, well\nx\ny\n", ";", ("text",)),
        ("betrag\n12,5\n13\n", ";", ("betrag",)),
        ("a,b,a,,b\n1,2,3,4,5\n", ",", ("a", "b", "a_2", "column_4", "b_2")),
        ("1,2\n3,4\n", ",", ("column_1", "column_2")),
        ("2025,2026\nx,y\nz,w\n", ",", ("2025", "2026")),
        ('a,b\n"x\ny",1\n"z; w",2\n', ",", ("a", "b")),
        ("a,b\n", ",", ("a", "b")),
        ("a;b\n1,5;x;\n2,5;y;\n", ";", ("a", "b")),
    ],
    ids=["decimal commas", "a comma in the header", "Excel's line", "ragged rows", "one column", "a text with commas",
         "one column of decimal commas",
         "names that are twice or empty", "no header", "years above texts", "quotes with newlines", "header only",
         "delimiters at the ends of rows"],
)  # fmt: skip
def test_the_delimiter_and_the_columns_are_found_in_the_text(
    text: str, delimiter: str, columns: tuple[str, ...]
) -> None:
    dialect = find_dialect(text)
    assert (dialect.delimiter, dialect.columns) == (delimiter, columns)


def test_names_of_columns_have_only_characters_of_paths() -> None:
    assert unique_names([' a"b\n', "\\", "ä"]) == ("a b", "column_2", "ä")


@pytest.mark.parametrize(
    ("text", "mark", "expected"),
    [
        ("12", POINT, "12"),
        ("-1.50", POINT, "-1.50"),
        ("1,234.5", POINT, "1234.5"),
        ("1.234,56", COMMA, "1234.56"),
        ("1'234.50", POINT, "1234.50"),
        ("1 234,5", COMMA, "1234.5"),
        ("12,50 €", COMMA, "12.50"),
        ("$1,000", POINT, "1000"),
        ("45 %", POINT, "45"),
        ("+7", POINT, "7"),
        (",5", COMMA, "0.5"),
        ("007", POINT, "7"),
        ("1e5", POINT, "1e5"),
        ("0,123", POINT, None),
        ("12.5", COMMA, None),
        ("1.2.3", COMMA, None),
        ("12-5", POINT, None),
        (".", POINT, None),
        ("", POINT, None),
        ("٣", POINT, None),
    ],
)
def test_numbers_are_read_digit_by_digit(text: str, mark: str, expected: str | None) -> None:
    assert read_number(text, mark) == expected


@pytest.mark.parametrize(
    ("texts", "mark"),
    [
        (["12,5", "1"], COMMA),
        (["1.234,56"], COMMA),
        (["0,123"], COMMA),
        (["1234,567"], COMMA),
        (["1.5"], POINT),
        (["1,234.5"], POINT),
        (["1,234", "2.345", "7"], None),
        (["31.12.2025", "x,y"], None),
    ],
)
def test_the_decimal_mark_is_found_if_the_texts_show_it(texts: list[str], mark: str | None) -> None:
    assert find_decimal(texts) == mark


def test_a_column_without_evidence_has_the_decimal_mark_of_the_others() -> None:
    """`1.234` alone is ambiguous. Beside `12,5` the point separates groups of digits."""
    assert find_dialect("a;b\n1.234;12,5\n2.345;13,5\n").decimals == (COMMA, COMMA)
    assert find_dialect("a;b\n1.234;x\n2.345;y\n").decimals == (POINT, POINT)
    assert find_dialect("lat;price\n59.91;12,5\n60.39;13,5\n").decimals == (POINT, COMMA)


@pytest.mark.parametrize(
    ("data", "name", "words"),
    [
        (b"", "a.csv", "is empty"),
        (b" \n\n", "a.csv", "is empty"),
        (b"\x00\x01\x02\x03" * 100, "a.csv", "is binary: byte 0 is 0x00"),
        (b"PK\x03\x04rest", "a.csv", "Excel workbook"),
        (b"Obj\x01rest", "a.bin", "Avro"),
        (b"no parquet at all", "a.parquet", "cannot be read as Parquet"),
        (b"[{]", "a.json", "is not JSON"),
        (b"\x1f\x8bnothing", "a.csv.gz", "cannot be read"),
    ],
    ids=["empty", "blank", "binary", "Excel", "Avro", "Parquet", "JSON", "gzip"],
)
def test_files_without_events_are_refused(tmp_path: Path, data: bytes, name: str, words: str) -> None:
    """The message names the file and the remedy."""
    path = written(tmp_path, data, name)
    with pytest.raises(EventFileError, match=words) as refused:
        rows(path)
    assert str(path) in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EventFileError, match="cannot be read"):
        rows(tmp_path / "none.csv")


def test_a_wrong_encoding_is_reported_with_its_line(tmp_path: Path) -> None:
    """The beginning is ASCII, so UTF-8 is assumed."""
    path = written(tmp_path, b"a,b\n" + b"1,2\n" * 300_000 + "ü,3\n".encode("cp1252"))
    with pytest.raises(EventFileError, match=r"near line \d+: byte 0xfc is not utf-8; write --encoding cp1252"):
        rows(path)
    assert rows(path, ReadOptions(encoding="cp1252"))[-1] == (300_002, {"a": "ü", "b": "3"})


@pytest.mark.parametrize("encoding", ["klingon", "rot13", "hex", "idna", "punycode", "undefined", "", "a\0b"])
def test_an_unknown_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(EventFileError, match=f"--encoding {encoding}: there is no such encoding"):
        rows(written(tmp_path, b"a\n1\n"), ReadOptions(encoding=encoding))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_detected_without_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    """The encoding is detected. The name utf-16 alone does not define the order of the bytes."""
    path = written(tmp_path, "a;b\nü;2\n".encode(encoding))
    expected = [(2, {"a": "ü", "b": "2"})]
    assert rows(path) == expected
    assert rows(path, ReadOptions(encoding=encoding)) == expected
    with pytest.raises(EventFileError, match="has no byte order mark; write --encoding utf-16-le or utf-16-be"):
        rows(path, ReadOptions(encoding="utf-16"))


def test_an_open_quote_is_reported_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, b'a,b\n1,2\n"' + b"x,\n" * 400_000)
    with pytest.raises(EventFileError, match=r"line 3: field larger .* check that the quotes of this line are closed"):
        rows(path)


def test_line_numbers_are_those_of_an_editor(tmp_path: Path) -> None:
    """Blank lines and newlines within quotes count."""
    path = written(tmp_path, b'a,b\n\n"x\ny",1\n2,3\n')
    assert rows(path) == [(3, {"a": "x\ny", "b": "1"}), (5, {"a": "2", "b": "3"})]


def test_a_compressed_file_is_decompressed(tmp_path: Path) -> None:
    path = written(tmp_path, gzip.compress(b"a;b\n1;2\n"), "a.csv.gz")
    assert rows(path) == [(2, {"a": "1", "b": "2"})]


FIELDS = [
    field("nr", "integer", path="Nr"),
    field("amount", "number", path=["Betrag (EUR)"]),
    field("paid", "boolean"),
    field("at", "timestamp", path="Datum", format="%d.%m.%Y"),
    field("note", "string"),
]


def test_cells_become_values_of_the_types_of_fields(tmp_path: Path) -> None:
    """Cells without a value and columns without a field are left out."""
    text = "Nr;Betrag (EUR);paid;Datum;note;other\n1;1.234,50;ja;31.12.2025;a;x\n2;;;;;\nN/A;-;nein; 01.01.2026 ;NA;\n"
    assert events(written(tmp_path, text.encode()), FIELDS) == [
        '{"Nr":1,"Betrag (EUR)":1234.50,"paid":true,"Datum":"31.12.2025","note":"a"}',
        '{"Nr":2}',
        '{"paid":false,"Datum":"01.01.2026","note":"NA"}',
    ]


def test_cells_of_another_type_are_sent_as_texts(tmp_path: Path) -> None:
    """Ingest refuses such values with a reason."""
    text = "Nr;Betrag (EUR);paid\nx1;12,5;maybe\n1,5;auf Anfrage;ja\n"
    assert events(written(tmp_path, text.encode()), FIELDS) == [
        '{"Nr":"x1","Betrag (EUR)":12.5,"paid":"maybe"}',
        '{"Nr":1.5,"Betrag (EUR)":"auf Anfrage","paid":true}',
    ]


def test_rows_with_too_many_cells_are_no_events(tmp_path: Path) -> None:
    """Missing cells count as empty. Empty cells after the last column are ignored."""
    text = "Nr,note\n1\n2,a,\n3,a,b\n"
    short, empty, long = events(written(tmp_path, text.encode()), FIELDS)
    assert (short, empty) == ('{"Nr":1}', '{"Nr":2,"note":"a"}')
    assert json.loads(long) == "line 4 has 3 cells, there are 2 columns: ['3', 'a', 'b']"


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ('a,b\n1,"x\n2,y\n', "the file ends within the quotes of the row in line 2: close them"),
        ('a,b\n1,"x\n', "the file ends within the quotes of the row in line 2: close them"),
        ('a,b\n1,"x\n' + "2,y\n" * 60 + '3,z"\n4,u\n', "the row in line 2 has 62 lines: check its quotes"),
        ('a,b\n1,"x\ny"\n2,5" pipe\n', None),
        ('a,b\n1,5" pipe\n2,"x"\n', None),
    ],
)
def test_quotes_that_are_probably_wrong_are_named(tmp_path: Path, text: str, warning: str | None) -> None:
    with EventFile(written(tmp_path, text.encode())) as file:
        assert list(file.numbered_values())
        assert list(file.warnings) == ([] if warning is None else [warning])


def test_columns_with_paths_as_names_fill_objects(tmp_path: Path) -> None:
    fields = [field("user_id", "integer", path="user.id"), field("dotted", "integer", path=["a.b"])]
    path = written(tmp_path, b"user.id,a.b\n1,2\n")
    assert events(path, fields) == ['{"user":{"id":1},"a.b":2}']


def test_epoch_times_are_numbers_and_texts_of_times_are_not(tmp_path: Path) -> None:
    fields = [field("ms", "timestamp"), field("s", "timestamp", format="s"), field("day", "timestamp", format="%Y%m%d")]
    path = written(tmp_path, b"ms,s,day\n1735689600000,1735689600.25,20250101\n2025-01-01T00:00:00Z,,\n")
    assert events(path, fields) == [
        '{"ms":1735689600000,"s":1735689600.25,"day":"20250101"}',
        '{"ms":"2025-01-01T00:00:00Z"}',
    ]


def test_lists_and_objects_in_cells_are_passed_on(tmp_path: Path) -> None:
    fields = [field("tags", "strings"), field("payload", "json")]
    path = written(tmp_path, b'tags;payload\n["a"];{"b":1}\nplain;\n')
    assert events(path, fields) == ['{"tags":["a"],"payload":{"b":1}}', '{"tags":"plain"}']


def test_a_pipeline_that_reads_no_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EventFileError, match=r"no field reads any of its columns x, y \(fields: nr, amount"):
        events(written(tmp_path, b"x,y\n1,2\n"), FIELDS)


def test_a_column_that_several_fields_read_is_sent_once_as_their_type_says(tmp_path: Path) -> None:
    fields = [field("one", "string", path="id"), field("two", "string", path="id"), field("whole", "json", path="id")]
    path = written(tmp_path, b"id,two\n1,x\n")
    assert events(path, fields) == ['{"id":"1"}']
    with EventFile(path) as file:
        writer = file.writer(fields)
    assert (writer.unused_columns, writer.unmatched_fields) == (("two",), ())
