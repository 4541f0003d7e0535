"""Tests of the examples in docs/recipes.md. test_recipes.py runs them in a copy of the code with all examples.

The name of each test contains the word of its example.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

import runbooks
import tidemill_contract
from drawn.kinds import crd_faults
from drawn.metrics import functions_for
from functions import table
from kafka_records import records
from oracle.cells import metric_cell
from oracle.events import Event
from oracle.model import NO_CUT, Entry, Version
from oracle.windows import draw_window
from tidemill_api.catalog import PipelineModel
from tidemill_api.formats import reference
from tidemill_api.http import openapi
from tidemill_api.http.rest import Rest
from tidemill_api.query.answers import Stream
from tidemill_contract.functions.partials import build_layout
from tidemill_contract.resource.kinds.metrics import METRICS
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.resource.validate import check_document
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_contract.windows import answer_columns, answer_range
from tidemill_operator.cli.main import main
from tidemill_operator.resource import reference as pages
from tidemill_operator.resource.crd import render
from tidemill_processor.batches.reader import BatchReader
from tidemill_processor.detect.detectors import judge
from tidemill_processor.merge.aggregate import aggregate

ROOT = Path(__file__).resolve().parents[3]
PATH = "/v1/pipelines/orders/aggregates/a"


def document(**changes: Any) -> dict[str, Any]:
    """Return a resource with one aggregation, and with changed members of its spec."""
    source = {"fields": [{"name": "ts", "type": "timestamp", "required": True}, {"name": "v", "type": "string"}],
              "topic": {"partitions": 1}, "eventTime": {"field": "ts"}}  # fmt: skip
    return {
        "apiVersion": "tidemill.dev/v1alpha1",
        "kind": "AnalyticsPipeline",
        "metadata": {"name": "orders", "namespace": "shop"},
        "spec": {"source": source, "aggregations": [aggregation()], **changes},
    }


def aggregation(**changes: Any) -> dict[str, Any]:
    window = {"type": "hopping", "size": "1m", "hop": "10s"}
    return {"name": "a", "window": window, "metrics": [{"name": "n", "function": "count"}], **changes}


def spec(**changes: Any) -> PipelineSpec:
    """Return the spec of `document`, which model and CRD must accept."""
    pipeline, faults = check_document(document(**changes))
    assert (faults, crd_faults(document(**changes))) == ([], [])
    assert pipeline is not None
    return pipeline.spec


@pytest.fixture(autouse=True)
def copied() -> None:
    """Check that the imported code is the copy."""
    assert Path(str(tidemill_contract.__file__)).is_relative_to(ROOT)


def test_filled_is_a_function_everywhere() -> None:
    """It is in the CRD, on the page and among drawn functions, and the tests' model computes the same value."""
    metric = {"name": "m", "function": "filled", "field": "v"}
    layout = build_layout(spec(aggregations=[aggregation(metrics=[metric])]).aggregations[0], {"v": "string"})
    assert [partial.column for partial in layout.partials] == ["_count", "_n_v"]
    assert answer_columns(layout) == [("m", "number", '"_n_v"::double precision / nullif("_count", 0)')]
    assert answer_range(METRICS.make(**metric), "string") == (0.0, 1.0)
    assert "- filled" in render()
    assert "| `filled` | the share of events" in table()
    assert "filled" in functions_for("timestamp")
    assert metric_cell(metric, {"v": "string"}, [{"v": "x"}, {"v": None}], 1000).fits(0.5)


def test_overlapping_windows_contain_the_events_of_the_tests_model() -> None:
    """The processor aggregates events of ten minutes."""
    window = {"type": "overlapping", "size": "1m"}
    pipeline = spec(aggregations=[aggregation(window=window)])
    layout = build_layout(pipeline.aggregations[0], {})
    rnd, now = random.Random(1), 1_770_000_000_000
    times = [now - rnd.randrange(600_000) for _ in range(500)]
    frame = BatchReader(pipeline).read(records(*({"ts": ts} for ts in times)), now).frame
    rows = aggregate(frame, layout, closed_until=None, epochs={}).rows
    counted: Counter[int] = Counter()
    for pane, count in rows.select("_pane", "_count").rows():
        for start in range(pane - layout.last_pane_offset_ms, pane + 1, layout.pane_ms):
            counted[start] += count
    version = Version(aggregation(window=window), 1)
    entries = [Entry(Event(0, 0, b"", time), {}, NO_CUT, 0) for time in times]
    assert counted == Counter(start for entry in entries for start in version.starts(entry))
    assert sum(counted.values()) == 2 * len(times)


def test_overlapping_is_a_kind_of_window_everywhere() -> None:
    """It is in the reference, in the CRD with its rules, and among drawn windows. Its own check reports faults."""
    assert "`overlapping`" in pages.render()
    assert crd_faults(document(aggregations=[aggregation(window={"type": "overlapping", "size": "1m", "hop": "1s"})]))
    assert "overlapping" in {draw_window(random.Random(seed))["type"] for seed in range(40)}
    _, faults = check_document(document(aggregations=[aggregation(window={"type": "overlapping", "size": "1s"})]))
    assert [(fault.path, fault.message) for fault in faults] == [
        ("spec.aggregations[0].window.size", "is not a multiple of two seconds")
    ]


def test_jump_reports_a_value_far_from_the_previous_value() -> None:
    rule = {"name": "r", "aggregation": "a", "metric": "n", "detector": {"type": "jump", "cooldown": "0s"}}
    (anomaly,) = spec(anomalies=[rule]).anomalies
    state: dict[str, Any] = {}
    anomalous = []
    for at, value in enumerate([*[float(n % 7) for n in range(60)], 100.0, 100.0, 103.0]):
        verdict, state = judge(anomaly.detector, state, at * 60_000, value)
        anomalous += [at] if verdict else []
    assert anomalous == [60]
    assert "`jump`" in pages.render()


def test_batchevents_is_a_member_of_the_resource() -> None:
    assert spec(processor={"batchEvents": 1_000}).processor.batch_events == 1_000
    assert check_document(document(processor={"batchEvents": 0}))[1][0].path == "spec.processor.batchEvents"
    assert crd_faults(document(processor={"batchEvents": 0})) == ["processor.batchEvents"]
    assert "| `processor.batchEvents` | integer, 1 to 50000 |" in pages.render()


def test_slowreaders_is_in_the_list_of_runbooks() -> None:
    assert "| [TidemillSlowReaders](tidemillslowreaders.md) | In a quarter of an hour" in runbooks.render()


class Canned:
    """Answers every query with one row of nulls."""

    async def stream_windows(self, _model: Any, query: Any, writer_of: Callable[..., Any], _deadline: Any) -> Stream:
        async def pieces() -> AsyncGenerator[bytes, None]:
            writer = writer_of(query.columns, {})
            yield writer.head() + writer.batch([(None,) * len(query.columns)]) + writer.tail()

        return Stream(pieces())


def answered(requests: Sequence[tuple[str, dict[str, str]]]) -> list[httpx.Response]:
    """Return the answers of the routes to requests of paths and headers."""
    refs = (AggregationRef(name="a"),)
    model = PipelineModel(PipelineConfig(namespace="shop", name="orders", generation=1, spec=spec(), aggregations=refs))
    catalog = SimpleNamespace(has_protected_pipelines=False, config=lambda _name: None, find=lambda _name: model)
    services: Any = SimpleNamespace(answers=Canned(), catalog=catalog)
    front: Any = SimpleNamespace()
    app: Any = Starlette(routes=Rest(services, front).routes())

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as client:
            return [await client.get(path, headers=headers) for path, headers in requests]

    return asyncio.run(ask())


def test_tsv_is_chosen_by_suffix_and_by_accept_header() -> None:
    answers = answered([(f"{PATH}.tsv", {}), (PATH, {"accept": "text/tab-separated-values"})])
    assert [answer.status_code for answer in answers] == [200, 200]
    assert {answer.headers["content-type"] for answer in answers} == {"text/tab-separated-values"}
    names, row = answers[0].text.splitlines()
    assert {"window_start", "n"} <= set(names.split("\t"))
    assert row == "\t" * names.count("\t")
    assert answers[0].text == answers[1].text


def test_tsv_is_in_the_reference_and_in_openapi() -> None:
    assert "| TSV | `.tsv` | `text/tab-separated-values` |" in reference.render()
    paths = openapi.document()["paths"]
    assert "/v1/pipelines/{pipeline}/aggregates/{aggregation}.tsv" in paths


def test_topics_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["topics", "--help"])
    assert ended.value.code == 0
    assert "usage: tidemill topics" in capsys.readouterr().out
