"""Tests that the REST API answers generated requests, valid and invalid, as its OpenAPI document describes.

schemathesis generates the requests. Real servers: the session's Kafka, Postgres and Redis, and one API process.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bench import MakeBench
from schema_run import run_checks
from tidemill_api.formats.registry import FORMATS
from tidemill_contract.functions.partials import Partial
from tidemill_contract.functions.sketches import build
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SPEC: dict[str, Any] = {
    "source": {
        "topic": {"partitions": 1},
        "fields": [
            {"name": "ts", "type": "timestamp", "required": True},
            {"name": "k", "type": "string"},
            {"name": "i", "type": "integer"},
            {"name": "b", "type": "boolean"},
            {"name": "v", "type": "number"},
        ],
        "eventTime": {"field": "ts"},
    },
    "aggregations": [
        {
            "name": "all_kinds",
            "groupBy": ["k", "i", "b"],
            "window": {"type": "hopping", "size": "2m", "hop": "1m"},
            "metrics": [
                {"name": "n", "function": "count"},
                {"name": "mean", "function": "avg", "field": "v"},
                {"name": "common", "function": "topk", "field": "i"},
            ],
        }
    ],
    "events": {"store": True},
    "auth": {"required": False},
}
NAMES = {"path.pipeline": "hostile", "path.aggregation": "all_kinds"}


@pytest.fixture(scope="module")
def base(make_shared_bench: MakeBench) -> str:
    """Return the URL of an API over one pipeline that has windows, events, dead letters and anomalies."""
    spec = PipelineSpec.model_validate(SPEC)
    bench = make_shared_bench(
        PipelineConfig(
            namespace="tests", name="hostile", generation=1, spec=spec, aggregations=(AggregationRef(name="all_kinds"),)
        )
    )
    bench.query("SELECT {s}.ensure_partition('all_kinds_v1', 19700, 30), {s}.ensure_partition('_events', 19700, 30)")
    bench.query(
        "INSERT INTO {s}.all_kinds_v1 (k, i, b, window_start, _rev, _count, _n_v, _sum_v, _frequent_i)"
        " SELECT 'k' || g, g, mod(g, 2) = 0, to_timestamp(1702080000 + g * 60), 1, g, g, g, %s"
        " FROM generate_series(1, 50) AS g RETURNING 1",
        (build(Partial("frequent", "i", "bytea", 10), [7, 7, 8]),),
    )
    bench.query(
        "INSERT INTO {s}._events SELECT to_timestamp(1702080000 + g), 1, 0, g, jsonb_build_object('k', 'k' || g)"
        " FROM generate_series(1, 20) AS g RETURNING 1"
    )
    bench.query(
        'INSERT INTO {s}._dead_letters (epoch, partition, "offset", aggregation, reason, detail, key, value, windows)'
        " SELECT 1, 0, g, CASE WHEN mod(g, 2) = 0 THEN 'all_kinds' ELSE '' END, 'late', NULL, NULL,"
        " decode(lpad(to_hex(g * 10), 4, '0'), 'hex'), ARRAY[1702080000000, 9223372036854775807]"
        " FROM generate_series(1, 20) AS g RETURNING 1"
    )
    bench.query(
        "INSERT INTO {s}._anomalies (anomaly, aggregation, version, metric, group_key, window_start, window_end, value,"
        " score, expected) SELECT 'a', 'all_kinds', 1, 'n', '[\"k\"]', to_timestamp(1702080000 + g),"
        " to_timestamp(1702080060 + g), CASE WHEN g > 1 THEN g ELSE 'infinity'::float8 END, g, NULL"
        " FROM generate_series(1, 20) AS g RETURNING 1"
    )
    bench.start(module="tidemill_api")
    bench.eventually(lambda: bench.health().get("status") == "healthy", what="the API is healthy")
    return f"http://127.0.0.1:{bench.ports[-1]}"


def test_every_answer_is_as_described(base: str, tmp_path: Path) -> None:
    """Each operation answers some requests with 200.

    Paths with a suffix, such as `.csv`, get random names of pipelines and aggregations.
    """
    suffixed = rf".*\.({'|'.join(FORMATS)})"
    answers = run_checks(base, tmp_path, examples=6, known=NAMES, paths=rf"(?!{suffixed}$).*")
    assert answers.phases == {"examples", "coverage", "fuzzing", "stateful"}
    assert len(answers.statuses) == 11 + 4 * len(FORMATS)
    plain = {label: counts for label, counts in answers.statuses.items() if not re.fullmatch(suffixed, label)}
    assert [label for label, counts in plain.items() if not counts[200]] == []
    statuses = sum(answers.statuses.values(), Counter())
    assert set(statuses) >= {200, 304, 400, 404}, statuses
