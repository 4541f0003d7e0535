"""A pipeline that reconcile() applies to real servers, without processes."""

from __future__ import annotations

import copy
import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from kafka_admin import KafkaAdmin
from pipelines.orders_by_shop import orders_by_shop
from played.no_processes import NoProcesses
from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_operator.actuators.base import Actuators
from tidemill_operator.actuators.kafka.topics import KafkaTopics
from tidemill_operator.actuators.local.secrets import FileSecrets
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.cli.main import main
from tidemill_operator.laptop.servers import Servers
from tidemill_operator.plan.build import build_plan
from tidemill_operator.reconcile import reconcile
from tidemill_operator.settings import Platform

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
TOPICS = [f"rectest.orders.{kind}" for kind in ("events", "results", "dead-letters")]
SCHEMA = "rectest__orders"
DOCUMENT = orders_by_shop("rectest", spec={"reclaimPolicy": "Delete"})
WELL = dict.fromkeys(("Ready", "TopicsReady", "SchemaReady", "ProcessorsReady", "IngestReady", "APIReady"), "Applied")


class AppliedPipeline:
    """A resource that reconcile() applies to a real Kafka and Postgres; no process is started."""

    def __init__(self, servers: Servers, folder: Path) -> None:
        self.servers, self.folder = servers, folder
        self.document = copy.deepcopy(DOCUMENT)
        self.status: dict[str, Any] | None = None
        self.kafka = KafkaTopics(servers.kafka)
        self.actuators = Actuators(
            kafka=self.kafka,
            postgres=PostgresSchemas(servers.postgres),
            secrets=FileSecrets(folder / "secrets"),
            runtime=NoProcesses(),
        )

    @property
    def spec(self) -> dict[str, Any]:
        return dict(self.document["spec"])

    def edit(self, **spec: Any) -> None:
        """Write the next generation, with these members of the spec."""
        self.document = copy.deepcopy(self.document)
        self.document["spec"] |= spec
        self.document["metadata"]["generation"] += 1

    def apply(self) -> dict[str, str]:
        """Run one pass of reconcile(); return the reasons of the conditions that are true."""
        self.status = reconcile(
            self.document, platform=Platform(), actuators=self.actuators, previous=self.status, now=NOON
        )
        return {c["type"]: c["reason"] for c in self.status["conditions"] if c["status"] == "True"}

    def message(self, kind: str) -> str:
        """Return the message of a condition."""
        assert self.status is not None
        return next(str(c["message"]) for c in self.status["conditions"] if c["type"] == kind)

    def plan(self, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
        """Run `tidemill plan` on a file without uid and generation; return exit code and output."""
        written = copy.deepcopy(self.document)
        written["metadata"] = {"name": "orders", "namespace": "rectest"}
        file = self.folder / "orders.yaml"
        file.write_text(yaml.safe_dump(written))
        code = main(["plan", str(file), "--data-dir", str(self.folder / "none"), *more])
        return code, capsys.readouterr().out

    def existing(self) -> tuple[set[str], bool]:
        """Return the topics that exist, and whether the schema exists."""
        return set(self.kafka.observe(TOPICS)), self.actuators.postgres.observe(SCHEMA) is not None

    def alter_topic(self, **config: str) -> None:
        """Change the configuration of the source topic, as an administrator does."""
        altered = {key.replace("_", "."): value for key, value in config.items()}
        KafkaAdmin(self.servers.kafka).alter(TOPICS[0], altered)


def planned_topics(bench: AppliedPipeline) -> Sequence[Any]:
    """Return the topics of the current plan."""
    return build_plan(AnalyticsPipeline.model_validate(bench.document), Platform(), 1).topics
