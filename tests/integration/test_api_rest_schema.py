"""Requests made up from the OpenAPI document, hostile ones included: whatever is asked, the API itself never fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from tidemill_contract.partials import Partial
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_contract.sketches import build
from tidemill_contract.spec import PipelineSpec

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
NAMES = {"pipeline": "hostile", "aggregation": "all_kinds"}


@pytest.fixture(scope="module")
def base(make_shared_bench: Callable[..., Any]) -> str:
    """The address of an API over one pipeline with a few windows."""
    spec = PipelineSpec.model_validate(SPEC)
    bench = make_shared_bench(
        PipelineConfig(
            namespace="tests", name="hostile", generation=1, spec=spec, aggregations=(AggregationRef(name="all_kinds"),)
        )
    )
    bench.query("SELECT {s}.ensure_partition('all_kinds_v1', 19700, 30)")
    bench.query(
        "INSERT INTO {s}.all_kinds_v1 (k, i, b, window_start, _rev, _count, _n_v, _sum_v, _frequent_i)"
        " SELECT 'k' || g, g, mod(g, 2) = 0, to_timestamp(1702080000 + g * 60), 1, g, g, g, %s"
        " FROM generate_series(1, 50) AS g RETURNING 1",
        (build(Partial("frequent", "i", "bytea", 10), [7, 7, 8]),),
    )
    bench.start(module="tidemill_api")
    bench.eventually(lambda: bench.health().get("status") == "healthy", what="the API is healthy")
    return f"http://127.0.0.1:{bench.ports[-1]}"


@pytest.mark.parametrize("real_names", [True, False])
def test_no_request_makes_the_api_fail(base: str, real_names: bool) -> None:
    """No 5xx, no content type or body that the document does not know."""
    document = schemathesis.openapi.from_url(f"{base}/openapi.json").exclude(path_regex="/live$")
    for found in document.get_all_operations():
        operation = found.ok()

        @hypothesis.settings(
            max_examples=25, deadline=None, database=None, derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )  # fmt: skip
        @hypothesis.given(case=operation.as_strategy())
        def ask(case: schemathesis.Case) -> None:
            if real_names:
                case.path_parameters = {
                    name: NAMES.get(name, value) for name, value in (case.path_parameters or {}).items()
                }
            case.call_and_validate(
                base_url=base,
                checks=[not_a_server_error, content_type_conformance, response_schema_conformance],
                timeout=30,
            )

        ask()
