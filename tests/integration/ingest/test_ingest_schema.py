"""Requests made up from the OpenAPI document, good and bad: each is answered as the document says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from schema_run import run_checks

pytestmark = [pytest.mark.integration, pytest.mark.slow]

APPEND = "POST /v1/pipelines/{pipeline}/events"
RECEIVE = "POST /v1/pipelines/{pipeline}/webhooks/{webhook}"


def test_every_answer_is_as_described(ingest: Any, tmp_path: Path) -> None:
    """All checks, of requests to a pipeline and a webhook that are there."""
    config = ingest.pipeline_config("described")
    hook = {"name": "github", "signature": "github", "secretRef": {"name": "hooks", "key": "github"}}
    source = config.spec.source.model_dump(by_alias=True, exclude_none=True)
    secrets = ingest.folder / "secrets" / "described"
    secrets.mkdir(parents=True)
    (secrets / "webhook-github").write_text("swordfish")
    ingest.add(ingest.pipeline_config("described", source={**source, "webhooks": [hook]}))
    known = {"path.pipeline": "described", "path.webhook": "github"}
    found = run_checks(ingest.url, tmp_path, examples=60, known=known)
    # No operation gives what another one takes: there is nothing to do in turn, and there are no examples.
    assert found.phases == {"coverage", "fuzzing"}
    assert len([label for label, statuses in found.statuses.items() if label.startswith("GET") and statuses[200]]) == 4
    append = found.statuses[APPEND]
    assert set(append) >= {400, 415, 422}, append
    assert set(found.statuses[RECEIVE]) >= {401}, found.statuses[RECEIVE]
    assert not set(found.statuses[RECEIVE]) & {200, 500, 503, 504}, found.statuses[RECEIVE]
    assert not set(append) & {500, 503, 504}, append
