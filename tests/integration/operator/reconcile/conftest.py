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
    made = AppliedPipeline(servers, tmp_path)
    yield made
    made.document["spec"]["reclaimPolicy"] = "Delete"
    release(made.document, platform=Platform(), actuators=made.actuators)
    assert made.there() == (set(), False)
