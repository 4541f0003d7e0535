"""Tests that ingest answers generated requests, valid and invalid, as its OpenAPI document says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from schema_run import run_checks

pytestmark = [pytest.mark.integration, pytest.mark.slow]

APPEND = "POST /v1/pipelines/{pipeline}/events"
RECEIVE = "POST /v1/pipelines/{pipeline}/webhooks/{webhook}"


def test_answers_to_generated_requests_match_the_openapi_document(ingest: Any, tmp_path: Path) -> None:
    """The requests name an existing pipeline and an existing webhook."""
    config = ingest.pipeline_config("described")
    hook = {"name": "github", "signature": "github", "secretRef": {"name": "hooks", "key": "github"}}
    source = config.spec.source.model_dump(by_alias=True, exclude_none=True)
    secrets = ingest.folder / "secrets" / "described"
    secrets.mkdir(parents=True)
    (secrets / "webhook-github").write_text("swordfish")
    ingest.add(ingest.pipeline_config("described", source={**source, "webhooks": [hook]}))
    existing = {"path.pipeline": "described", "path.webhook": "github"}
    report = run_checks(ingest.url, tmp_path, examples=60, known=existing)
    # No operation returns a parameter of another, and the document has no examples. These phases are skipped.
    assert report.phases == {"coverage", "fuzzing"}
    assert len([label for label, statuses in report.statuses.items() if label.startswith("GET") and statuses[200]]) == 4
    append = report.statuses[APPEND]
    assert set(append) >= {400, 415, 422}, append
    assert set(report.statuses[RECEIVE]) >= {401}, report.statuses[RECEIVE]
    assert not set(report.statuses[RECEIVE]) & {200, 500, 503, 504}, report.statuses[RECEIVE]
    assert not set(append) & {500, 503, 504}, append
