"""Tests of lookups without servers: rows that are read, joined and bounded, and messages of errors."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest

from tidemill_contract.resource.documents import load_documents
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.resource.validate import check_document
from tidemill_contract.runtime import PipelineConfig, WorkloadSettings
from tidemill_processor.lookups import table as tables
from tidemill_processor.lookups.files import FileSource
from tidemill_processor.lookups.lookups import Lookups, PolledLookup, lookups_of
from tidemill_processor.lookups.postgres import PostgresSource
from tidemill_processor.lookups.table import DELETED, KEY, LookupFault, Table, TableBuilder
from tidemill_processor.lookups.topic import TopicReader

ROOT = Path(__file__).resolve().parents[4]
FIELDS = [
    {"name": "price", "type": "decimal", "scale": 2},
    {"name": "since", "type": "timestamp"},
    {"name": "label", "type": "string", "path": "name"},
]
FILE = {"configMap": "plans", "file": "plans.csv", "key": "plan"}


def spec(source: dict[str, Any], fields: list[dict[str, Any]] = FIELDS, on: str = "plan") -> PipelineSpec:
    return PipelineSpec.model_validate(
        {
            "source": {"fields": [{"name": "plan", "type": "string"}, {"name": "id", "type": "integer"}]},
            "lookups": [{"name": "plans", "on": on, "from": source, "fields": fields}],
            "aggregations": [
                {
                    "name": "a",
                    "groupBy": [fields[-1]["name"]],
                    "window": {"type": "tumbling", "size": "1m"},
                    "metrics": [{"name": "n", "function": "count"}],
                }
            ],
        }
    )


def loaded(folder: Path, text: str, file: str = "plans.csv") -> Table:
    """Return the table that is loaded from a file with this text."""
    (folder / file).write_text(text)
    of = spec({**FILE, "file": file})
    assert of.lookups is not None
    table = FileSource(of, of.lookups[0], folder).load()
    assert table is not None
    return table


def rows(table: Table) -> set[tuple[Any, ...]]:
    """Return the rows, with times as seconds."""
    return set(table.rows.with_columns(pl.col("since").dt.epoch("s")).rows())


ROWS = {("free", 0, None, None), ("pro", 999, 1_767_225_600, "Pro, yearly")}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("p.csv", 'plan,more,price,since,name\nfree,x,0,,\npro,y, 9.99,2026-01-01T00:00:00Z,"Pro, yearly"\n\n,,1,,\n'),
        ("p.csv", "\ufeffplan;price;since;name\r\nfree;0;;\r\npro;9.99;1767225600000;Pro, yearly\r\n"),
        (
            "p.json",
            '[{"plan": "free", "price": "0", "more": [1]},'
            ' {"plan": "pro", "price": 9.99, "since": "2026-01-01T01:00:00+01:00", "name": "Pro, yearly"}]',
        ),
        (
            "p.ndjson",
            '{"plan": "free", "price": 0}\n\n'
            '{"plan": "pro", "price": "9.990", "since": 1767225600000, "name": "Pro, yearly"}\n{"plan": null}',
        ),
    ],
)
def test_rows_of_files_in_every_format_are_read_like_events(tmp_path: Path, file: str, text: str) -> None:
    """A row without a key is skipped."""
    with_keys = text if "null" not in text else text.replace('{"plan": null}', "")
    assert rows(loaded(tmp_path, with_keys, file)) == ROWS


def test_a_line_of_json_ends_at_a_line_break_only(tmp_path: Path) -> None:
    texts = ("a\u2028b", "a\x85b", "a\x7fb")
    lines = "".join(f'{{"plan": "{number}", "name": "{text}"}}\r\n' for number, text in enumerate(texts))
    assert {row[-1] for row in loaded(tmp_path, lines, "p.ndjson").rows.rows()} == set(texts)


def test_an_error_names_a_field_that_ends_like_the_internal_key_column(tmp_path: Path) -> None:
    of = spec({**FILE, "file": "p.ndjson"}, [{"name": "shop_key", "type": "string"}])
    assert of.lookups is not None
    (tmp_path / "p.ndjson").write_text('{"plan": "a", "shop_key": 5}')
    with pytest.raises(LookupFault, match=r"^line 1: shop_key: expected string, got number 5"):
        FileSource(of, of.lookups[0], tmp_path).load()


HEADER = "plan,price,since,name\n"


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("p.csv", "", "has no column plan; its columns are none: correct the header, or the from.key"),
        ("p.csv", "plan,price,since\n", "has no column name; its columns are plan, price, since: correct"),
        ("p.csv", "plan,plan,price,since,name\n", "has several columns plan"),
        ("p.csv", f"{HEADER}a,1\n", "line 2: expected 4 cells (plan,price,since,name), got 2; correct the line"),
        ("p.csv", f'{HEADER}"a,1,,\n', "line 2: is not CSV"),
        ("p.csv", f"{HEADER}a,1,,\nb,1.234,,\n", "row 2: price: 1.234 has more than 2 digits after the point; round"),
        ("p.csv", f"{HEADER}a,1,yesterday,\n", "row 1: since: "),
        ("p.csv", f"{HEADER}a,1,,\na,2,,\n", "the key 'a' has several rows; use a key whose values are unique"),
        ("p.csv", f"{HEADER}a,1,,{'x' * 1025}\n", "row 1: 1025 bytes; a group column can hold at most 1024"),
        ("p.json", '{"plan": "a"}', "is not an array of JSON"),
        ("p.json", '[{"plan": 5}]', "element 1: plan: expected string, got number 5"),
        ("p.ndjson", '{"plan": "a"}\n[]\n', "line 2: "),
        ("p.ndjson", '{"plan": "a"}\r\n\n\n[]', "line 4: "),
    ],
)
def test_an_error_in_a_file_names_its_place_and_reason(tmp_path: Path, file: str, text: str, words: str) -> None:
    with pytest.raises(LookupFault) as error:
        loaded(tmp_path, text, file)
    assert words in str(error.value)


def test_a_changed_file_is_read_when_it_no_longer_changes(tmp_path: Path) -> None:
    of = spec(FILE)
    assert of.lookups is not None
    source = FileSource(of, of.lookups[0], tmp_path)
    with pytest.raises(LookupFault, match="cannot be read: No such file or directory; create it"):
        source.load()
    path = tmp_path / "plans.csv"
    path.write_text(f"{HEADER}a,1,,\n")
    assert source.load() is not None
    assert source.load() is None
    path.write_text(f"{HEADER}a,1,,\nb,2")
    assert source.load() is None
    path.write_text(f"{HEADER}a,1,,\nb,2,,\n")
    assert source.load() is None
    changed = source.load()
    assert changed is not None
    assert changed.height == 2
    path.write_bytes(b"\xff\xfe")
    source.load()
    for _ in range(2):
        with pytest.raises(LookupFault, match="is not UTF-8"):
            source.load()


class Sent:
    """A Kafka record."""

    def __init__(self, key: bytes | None, value: bytes | None, offset: int = 0) -> None:
        self._key, self._value, self._offset = key, value, offset

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes | None:
        return self._value

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset


def test_the_last_record_of_a_key_in_a_topic_sets_or_deletes_its_row() -> None:
    """An unreadable record deletes the row of its key, and its error is kept."""
    of = spec({"topic": "default.plans"}, [{"name": "label", "type": "string"}], on="id")
    assert of.lookups is not None
    reader = TopicReader(of, of.lookups[0])
    contents = TableBuilder(reader.schema)

    def apply(*sent: Any) -> list[str | None]:
        contents.apply(reader.changes(sent))
        return contents.snapshot().join(pl.DataFrame({"id": [1, 2, 3, None]}), "id")["label"].to_list()

    first = [Sent(b"1", b'{"label": "a"}'), Sent(b"2", b'{"label": "b"}'), Sent(b"1", b'{"label": "c"}')]
    assert apply(*first) == ["c", "b", None, None]
    broken = Sent(b"2", b'{"label": 5}', 7), Sent(b"x", b"{}"), Sent(None, b"{}"), Sent(b"\xff", b"{}")
    assert apply(*broken, Sent(b"3", b"{}"), Sent(b"1", None)) == [None, None, None, None]
    assert reader.unreadable.keys() == {b"2", b"x", b"", b"\xff"}
    assert reader.unreadable[b"2"].startswith("partition 0, offset 7: label: expected string, got number 5")
    assert "its key is not a valid integer in text form" in reader.unreadable[b"x"]
    assert apply(Sent(b"2", None), Sent(b"3", b'{"label": "d"}')) == [None, None, "d", None]
    assert b"2" not in reader.unreadable


def test_a_join_sees_changes_before_and_after_they_are_merged_into_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_SEMI_JOIN_ROWS", 100)
    monkeypatch.setattr(tables, "_MAX_CHANGES", 300)
    contents = TableBuilder(pl.Schema({KEY: pl.Int64(), "v": pl.Int64()}))
    expected: dict[int, int] = {}
    events = pl.DataFrame({"id": [*range(0, 1_000, 3), None], "v0": range(335)})
    for turn in range(40):
        keys = [(turn * 97 + i * 31) % 1_000 for i in range(60)]
        deletions = [key % 7 == turn % 7 for key in keys]
        contents.apply(pl.DataFrame({KEY: keys, "v": [turn] * 60, DELETED: deletions}))
        expected |= dict.fromkeys(keys, turn)
        for key, deleted in zip(keys, deletions, strict=True):
            if deleted:
                expected.pop(key, None)
        joined = contents.snapshot().join(events, "id")
        assert joined.select(events.columns).equals(events)
        assert joined["v"].to_list() == [expected.get(key) for key in events["id"]]


def test_a_lookup_with_too_many_rows_or_bytes_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_ROWS", 2)
    with pytest.raises(LookupFault, match="has more than 2 rows \\(the limit of a lookup\\); load fewer rows"):
        loaded(tmp_path, f"{HEADER}a,1,,\nb,1,,\nc,1,,\n")
    contents = TableBuilder(pl.Schema({KEY: pl.Int64()}))
    with pytest.raises(LookupFault, match="the limit of a lookup"):
        contents.apply(pl.DataFrame({KEY: [1, 2, 3], DELETED: [False] * 3}))
    monkeypatch.setattr(tables, "MAX_BYTES", 10)
    with pytest.raises(LookupFault, match="uses more than 0 MiB of memory \\(the limit of a lookup\\); load fewer"):
        loaded(tmp_path, f"{HEADER}a,1,,\n")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, "the Secret shop (@) names no server; add host, port, dbname, username and password, or uri"),
        ({"uri": "what"}, "uri of the Secret shop (@) is no URI of Postgres; write postgresql://"),
        (
            {"host": "db", "database": "shop", "user": "me", "password": "p\n", "ca.crt": "x"},
            {
                "host": "db", "port": "5432", "dbname": "shop", "user": "me", "password": "p",
                "sslrootcert": "@/ca.crt", "sslmode": "verify-full",
            },
        ),
        (
            {"uri": "postgresql://me:p@db:6543/shop?sslmode=require&options=-cx", "password": "q"},
            {
                "host": "db", "port": "6543", "dbname": "shop", "user": "me", "password": "q", "sslmode": "require",
            },
        ),
    ],
)  # fmt: skip
def test_the_login_of_postgres_is_read_from_a_secret(tmp_path: Path, keys: dict[str, str], expected: Any) -> None:
    for name, text in keys.items():
        (tmp_path / name).write_text(text)
    source = postgres(tmp_path)
    if isinstance(expected, dict):
        login = {name: str(value).replace(str(tmp_path), "@") for name, value in source._login().items()}
        assert login == expected
        return
    with pytest.raises(LookupFault) as error:
        source.load()
    assert expected in str(error.value).replace(str(tmp_path), "@")


def postgres(folder: Path, **source: str) -> PostgresSource:
    relation = source or {"table": "Shop.plans"}
    of = spec(
        {**relation, "key": "Plan of 2026", "secretRef": {"name": "shop"}},
        [{"name": "v", "type": "string", "path": "a.b"}],
    )
    assert of.lookups is not None
    return PostgresSource(of, of.lookups[0], folder)


def test_only_the_needed_columns_are_selected_from_postgres(tmp_path: Path) -> None:
    inner = 'row_to_json(r)::text AS j FROM (SELECT "Plan of 2026", "a" FROM {}) AS r LIMIT 1000001'
    assert inner.format('"Shop"."plans"') in postgres(tmp_path)._statement().as_string()
    query = postgres(tmp_path, query="SELECT 1; -- one; \n;")._statement().as_string()
    assert inner.format("(SELECT 1; -- one; \n\n) AS q") in query


def test_an_unreachable_postgres_is_an_error_with_its_address_and_without_its_password(tmp_path: Path) -> None:
    (tmp_path / "uri").write_text("postgresql://me:secret@127.0.0.1:9/shop")
    source = postgres(tmp_path)
    with pytest.raises(LookupFault, match="refused") as error:
        source.load()
    assert not isinstance(error.value.__cause__, psycopg.Error)
    assert source.source_name == "Postgres 127.0.0.1:9/shop, table Shop.plans"
    assert "secret" not in str(error.value)


def config(of: PipelineSpec) -> PipelineConfig:
    return PipelineConfig(namespace="default", name="p", generation=1, spec=of, aggregations=())


def test_health_reports_a_lookup_that_is_not_loaded_or_outdated(tmp_path: Path) -> None:
    of = spec(FILE)
    lookups = Lookups(config(of), WorkloadSettings(lookup_dirs=f'{{"plans": "{tmp_path}"}}'))
    frame = pl.DataFrame({"plan": ["a", "b"]})
    assert not lookups.ready
    with pytest.raises(RuntimeError, match="the lookup plans was not read yet"):
        lookups.join(frame)
    (row,) = lookups.dependencies()
    assert (row.name, row.ok, row.required) == ("lookup plans", False, True)
    assert f"file plans.csv of the ConfigMap plans ({tmp_path}/plans.csv): is being read" in row.detail
    assert lookups.problems() == {"plans": None}
    (tmp_path / "plans.csv").write_text(f"{HEADER}a,1,,x\n")
    source = lookups._lookups[0].source
    assert isinstance(source, PolledLookup)
    stopped = threading.Event()
    source._source.load = lambda load=source._source.load: (stopped.set(), load())[1]  # type: ignore[method-assign]
    source.run(stopped)
    assert lookups.ready
    assert lookups.join(frame)["label"].to_list() == ["x", None]
    assert lookups.dependencies()[0].ok
    assert lookups.problems() == {"plans": {}}
    source.confirmed_at -= 60
    source.error = "gone"
    (row,) = lookups.dependencies()
    assert (row.ok, row.required) == (False, False)
    assert "gone; outdated: events get rows that are 60 s old" in row.detail
    assert lookups.problems() == {"plans": {"stale lookup": row.detail}}
    assert lookups_of(config(of.model_copy(update={"lookups": None})), WorkloadSettings()) is None


@pytest.mark.parametrize("snippet", re.findall("```yaml\n(.*?)```", (ROOT / "docs/lookups.md").read_text(), re.DOTALL))
def test_the_examples_of_the_documentation_are_valid(snippet: str) -> None:
    kinds = [("customer_id", "string"), ("sku", "string"), ("plan", "string")]
    fields = ", ".join(f"{{name: {name}, type: {kind}}}" for name, kind in kinds if f"name: {name}," not in snippet)
    text = f"""
apiVersion: tidemill.dev/v1alpha1
kind: AnalyticsPipeline
metadata: {{name: a, namespace: crm}}
spec:
  source: {{fields: [{fields}]}}
  aggregations:
    - {{name: a, window: {{type: tumbling, size: 1m}}, metrics: [{{name: orders, function: count}}]}}
""" + "".join(f"  {line}\n" for line in snippet.splitlines())
    (document,) = load_documents(text)
    assert check_document(document)[1] == []
