"""The OpenAPI document against the running service: whatever is sent, the answer is one that it describes."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

pytestmark = [pytest.mark.integration, pytest.mark.slow]

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 40
LIMITS = settings(
    max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@schemathesis.serializer("application/x-ndjson")
def write_lines(context: Any, value: Any) -> bytes:
    """NDJSON is described as text."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


def send(cases: Any, codes: set[int]) -> None:
    """Try some cases of an operation; the status codes are added to `codes`."""

    @LIMITS
    @given(cases)
    def one(case: Any) -> None:
        codes.add(case.call_and_validate(checks=CHECKS, timeout=30).status_code)

    one()


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_answers_are_as_described(ingest: Any, mode: str) -> None:
    """Valid and invalid requests, to a pipeline that exists and to made-up ones, without a single server error."""
    name = f"described-{mode}"
    ingest.add(ingest.pipeline_config(name))
    schema = schemathesis.openapi.from_url(f"{ingest.url}/openapi.json")
    tried: dict[str, set[int]] = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        events = operation.path.startswith("/v1/")
        if mode == "negative" and not events:
            continue  # they take nothing that could be wrong
        codes = tried.setdefault(operation.label, set())
        for path_parameters in ({"pipeline": name}, None) if events else (None,):
            send(operation.as_strategy(schemathesis.GenerationMode(mode), path_parameters=path_parameters), codes)
    append = tried["POST /v1/pipelines/{pipeline}/events"]
    assert append >= ({404, 422} if mode == "positive" else {400}), append
    assert not append & {500, 503, 504}
    if mode == "positive":
        assert len(tried) == 5
