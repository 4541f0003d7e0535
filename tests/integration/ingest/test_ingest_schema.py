"""Requests made up from the OpenAPI document, good and bad: each is answered as the document says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from schema_run import run_checks

pytestmark = [pytest.mark.integration, pytest.mark.slow]

APPEND = "POST /v1/pipelines/{pipeline}/events"


def test_every_answer_is_as_described(ingest: Any, tmp_path: Path) -> None:
    """All checks, of requests to a pipeline that is there."""
    ingest.add(ingest.pipeline_config("described"))
    found = run_checks(ingest.url, tmp_path, examples=60, known={"path.pipeline": "described"})
    # No operation gives what another one takes: there is nothing to do in turn, and there are no examples.
    assert found.phases == {"coverage", "fuzzing"}
    assert len([label for label, statuses in found.statuses.items() if label.startswith("GET") and statuses[200]]) == 4
    append = found.statuses[APPEND]
    assert set(append) >= {400, 415, 422}, append
    assert not set(append) & {500, 503, 504}, append
