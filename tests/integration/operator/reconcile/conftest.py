"""Fixture of a pipeline that reconcile() applies to a real Kafka and Postgres."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.applied_pipeline import AppliedPipeline
from tidemill_operator.laptop.servers import Servers
from tidemill_operator.reconcile import release
from tidemill_operator.settings import Platform


@pytest.fixture
def bench(servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppliedPipeline]:
    for name in [name for name in os.environ if name.startswith("TIDEMILL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TIDEMILL_KAFKA_BROKERS", servers.kafka)
    monkeypatch.setenv("TIDEMILL_POSTGRES_URL", servers.postgres.url)
    pipeline = AppliedPipeline(servers, tmp_path)
    yield pipeline
    pipeline.document["spec"]["reclaimPolicy"] = "Delete"
    release(pipeline.document, platform=Platform(), actuators=pipeline.actuators)
    assert pipeline.existing() == (set(), False)
