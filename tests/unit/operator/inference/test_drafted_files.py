"""Tests of files that `init` drafts from and `send` reads: the decoder of the pipeline accepts each event."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tidemill_contract.events.decoder import EventDecoder
from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_contract.resource.validate import load_documents
from tidemill_operator.cli.main import main
from tidemill_operator.event_files.event_file import EventFile

NOW_MS = 1_796_000_000_000
START = dt.datetime(2026, 3, 28, 22, 0)
"""The clocks change within the following hours."""


def times(count: int = 40) -> list[dt.datetime]:
    return [START + dt.timedelta(minutes=17 * n) for n in range(count)]


def german(path: Path) -> None:
    rows = [
        f"{n};{m:%d.%m.%Y %H:%M};{n * 1000 + 7},5{n % 10};{'ja' if n % 2 else 'nein'};" for n, m in enumerate(times())
    ]
    path.write_text("Nr;Zeit;Betrag;Bezahlt;Leer\n" + "\n".join(rows), encoding="cp1252")


def american(path: Path) -> None:
    rows = [f'{n},{m:%m/%d/%Y %I:%M %p},"$1,{n + 100}.50",{n % 3},"a ""b"", c"' for n, m in enumerate(times())]
    path.write_text("id,Order Date,Total,type,note\n" + "\n".join(rows))


def tabs(path: Path) -> None:
    rows = [f"{m.timestamp():.3f}\t{n / 7}\t00{n}\tx" for n, m in enumerate(times())]
    path.write_text("time\tvalue\tcode\tNull\n" + "\n".join(rows), encoding="utf-16")


def nested(path: Path) -> None:
    events = [
        {"createdAt": f"{m.isoformat()}Z", "user": {"id": n % 5, "tags": ["a", "b"], "geo": {"lat": n / 3}},
         "a.b": None if n % 2 else "x", "items": [{"sku": 1}], "ok": n % 2 == 0, "n": n}
        for n, m in enumerate(times())
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, events)))


def array(path: Path) -> None:
    path.write_text(json.dumps([{"ts": int(m.timestamp() * 1e6), "value": n * 0.5} for n, m in enumerate(times())]))


def parquet(path: Path) -> None:
    columns: dict[str, Any] = {
        "local": times(),
        "day": [m.date() for m in times()],
        "price": [decimal.Decimal(n) / 4 for n in range(40)],
        "who": [{"id": n % 4, "name": f"n{n % 3}"} for n in range(40)],
        "tags": [["a"] if n % 2 else [] for n in range(40)],
        "big": [2**62 + n for n in range(40)],
        "part": [None if n % 2 else 0.5 for n in range(40)],
    }
    pl.DataFrame(columns, schema_overrides={"price": pl.Decimal(12, 2)}).write_parquet(path)


FILES = {
    "german.csv": german, "american.csv": american, "tabs.tsv": tabs, "nested.ndjson": nested, "array.json": array,
    "rows.parquet": parquet,
}  # fmt: skip


@pytest.mark.parametrize(("name", "write"), FILES.items(), ids=FILES)
def test_events_of_a_file_are_valid_for_its_draft(
    tmp_path: Path, name: str, write: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each event has an event time, and the aggregation has a numeric metric."""
    write(tmp_path / name)
    assert main(["init", "--from", str(tmp_path / name), "--zone", "Europe/Berlin"]) == 0
    (document,) = load_documents(capsys.readouterr().out)
    spec = AnalyticsPipeline.model_validate(document).spec
    decoder = EventDecoder(spec)
    with EventFile(tmp_path / name) as file:
        sent = [event.data for event in file.events(spec.source.fields)]
    events, invalid = decoder.decode_batch(sent, NOW_MS)
    assert invalid == {}
    assert len(events) == 40
    assert spec.source.event_time.field is not None
    assert None not in decoder.values(events, spec.source.event_time.field)
    assert {metric.function for metric in spec.aggregations[0].metrics} > {"count", "avg"}


def test_rows_with_any_cells_are_sent_as_events(tmp_path: Path) -> None:
    """Each row with random cells is sent as one line."""
    draw, kinds = random.Random(5), ['"', ";", ",", "\n", "ä", "1", "-", ".", " ", "€", "0", "e", "\\", "'"]
    for _ in range(60):
        rows = [["".join(draw.choices(kinds, k=draw.randint(0, 6))) for _ in range(3)] for _ in range(20)]
        quoted = "\n".join(";".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows)
        path = tmp_path / "a.csv"
        path.write_text("a;b;c\n" + quoted + "\n", newline="")
        fields = [
            {"name": name, "type": kind} for name, kind in zip("abc", ("number", "string", "timestamp"), strict=True)
        ]
        spec = AnalyticsPipeline.model_validate(
            {
                "apiVersion": "tidemill.dev/v1alpha1", "kind": "AnalyticsPipeline", "metadata": {"name": "a"},
                "spec": {
                    "source": {"fields": fields},
                    "aggregations": [{"name": "all", "window": {"type": "tumbling", "size": "1m"},
                                      "metrics": [{"name": "n", "function": "count"}]}],
                },
            }
        ).spec  # fmt: skip
        with EventFile(path) as file:
            assert file.table is not None
            sent = [event.data for event in file.events(spec.source.fields)]
        assert len(sent) == 20
        assert not any(b"\n" in data for data in sent)
        EventDecoder(spec).decode_batch(sent, NOW_MS)
