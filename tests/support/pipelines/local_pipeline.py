"""One pipeline under the local runtime, which the test reconciles."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.pipeline_schema import connect_admin
from tidemill_contract import names
from tidemill_contract.functions.partials import quote
from tidemill_operator.actuators.base import Actuators
from tidemill_operator.actuators.local.runtime import LocalRuntime
from tidemill_operator.reconcile import reconcile
from tidemill_operator.settings import Platform
from waiting import eventually


@dataclass
class LocalPipeline:
    """One pipeline with real processes on the session's servers. The test reconciles it."""

    servers: Any
    folder: Path
    document: dict[str, Any]
    actuators: Actuators
    runtime: LocalRuntime
    status: dict[str, Any] | None = None

    eventually = staticmethod(eventually)

    @property
    def namespace(self) -> str:
        """The namespace."""
        return str(self.document["metadata"]["namespace"])

    @property
    def name(self) -> str:
        """The name."""
        return str(self.document["metadata"]["name"])

    @property
    def schema(self) -> str:
        """The Postgres schema."""
        return names.schema(self.namespace, self.name)

    def query(self, text: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query, in which `{s}` stands for the schema."""
        with connect_admin(self.servers) as connection:
            return connection.execute(text.replace("{s}", quote(self.schema))).fetchall()

    def reconcile(self, actuators: Actuators | None = None) -> dict[str, str]:
        """Run one pass, and return the conditions that are true, with their reasons."""
        self.status = reconcile(
            self.document,
            platform=Platform(),
            actuators=actuators or self.actuators,
            previous=self.status,
            now=dt.datetime.now(dt.UTC),
        )
        return {c["type"]: c["reason"] for c in self.status["conditions"] if c["status"] == "True"}

    def settle(self, *, seconds: float = 90.0) -> dict[str, str]:
        """Reconcile until the pipeline is ready, and return the conditions that are true, with their reasons."""
        return dict(
            eventually(
                lambda: true if "Ready" in (true := self.reconcile()) and "Progressing" not in true else None,
                seconds=seconds,
                what=f"{self.name} is ready",
            )
        )

    def message(self, kind: str) -> str:
        """Return the message of a condition."""
        assert self.status is not None
        return next(str(c["message"]) for c in self.status["conditions"] if c["type"] == kind)

    def pids(self) -> dict[str, int | None]:
        """Return the process ids of the workloads, by `processor-0`, `ingest-0`, …."""
        prefixes = (f"{self.namespace}.{self.name}-", f"{self.namespace}.tidemill-")
        return {
            name.removeprefix(prefix): state.pid
            for name, state in self.runtime.states().items()
            for prefix in prefixes
            if name.startswith(prefix)
        }

    def url(self, component: str) -> str:
        """Return the URL of the pipeline at `ingest` or `api`."""
        return f"{self.runtime.endpoints(self.namespace, self.name)[component]}/v1/pipelines/{self.name}"

    def consumed(self) -> int:
        """Return the number of records that Postgres has as consumed."""
        return int(self.query("SELECT coalesce(sum(consumed), 0) FROM {s}._offsets")[0][0])
