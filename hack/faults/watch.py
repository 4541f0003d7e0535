"""Records twice a second what components report during a fault, and how many events are really counted."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import httpx
import psycopg
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from prometheus_client.parser import text_string_to_metric_families

from demo.runtime import Runtime
from tidemill_contract import names

COMPONENTS = ("processor", "ingest", "api")
EVERY_SECONDS = 0.5
_LAG = "tidemill_pipeline_lag_events"
# The configuration `min.insync.replicas` of the topic.
_IN_SYNC = 2
_ASK_SECONDS = 2.0

Sample = tuple[float, Any]
"""The time of a report (monotonic seconds), and the content of the report."""


class Watch:
    """Asks all components until it is closed.

    Attributes:
        samples: The reports by source:

            - `processor`, `ingest`, `api`: `/health` with the failing dependencies.
            - `ready`: the condition Ready with its reason.
            - `gauge`: the lag in Prometheus' format.
            - `status`: the lag of `tidemill status`.
            - `restarts`: the number of restarts by process.
            - `counted`: the number of counted events by the positions in Postgres, or None if Postgres does not answer.
            - `waiting`: the number of acknowledged events that are not counted, or None like `counted`.
            - `writable`: whether all partitions have a leader and enough in-sync replicas. Brokers are asked without
              the proxies.
    """

    def __init__(
        self, runtime: Runtime, postgres: str, brokers: Sequence[int], *, acknowledged: Callable[[], int]
    ) -> None:
        self._runtime, self._postgres, self._brokers = runtime, postgres, brokers
        self._acknowledged = acknowledged
        self._schema = names.schema(runtime.namespace, runtime.name)
        self._connection: psycopg.Connection[Any] | None = None
        self._ended = threading.Event()
        sources: dict[str, Callable[[], Any]] = {
            **{name: lambda name=name: self._health(name) for name in COMPONENTS},  # type: ignore[misc]
            "ready": self._ready,
            "gauge": self._gauge,
            "status": self._status,
            "restarts": self._restarts,
            "counted": self._counted,
            "writable": self._writable,
        }
        self.samples: dict[str, list[Sample]] = {name: [] for name in (*sources, "waiting")}
        self._threads = [threading.Thread(target=self._sample, args=item, daemon=True) for item in sources.items()]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop asking."""
        self._ended.set()

    def latest(self, name: str) -> Any:
        """Return the latest report, or None if there is no report yet."""
        return self.samples[name][-1][1] if self.samples[name] else None

    def since(self, name: str, moment: float) -> list[Sample]:
        """Return the reports since a time."""
        return [sample for sample in list(self.samples[name]) if sample[0] >= moment]

    def _sample(self, name: str, ask: Callable[[], Any]) -> None:
        while not self._ended.is_set():
            report, acknowledged = None, self._acknowledged()
            with suppress(Exception):
                report = ask()
            self.samples[name].append((time.monotonic(), report))
            if name == "counted":
                waiting = None if report is None else max(0, acknowledged - report)
                self.samples["waiting"].append((time.monotonic(), waiting))
            self._ended.wait(EVERY_SECONDS)

    def _health(self, component: str) -> str:
        """Return a component's report, an unhealthy report first. `silent`: no answer; `absent`: no process."""
        workloads: Mapping[str, Any] = self._runtime.status()["workloads"]
        reports = [_report(int(of["port"])) for name, of in workloads.items() if component in name]
        return max(reports, key=lambda text: text != "healthy", default="absent")

    def _pipeline(self) -> dict[str, Any]:
        pipeline: dict[str, Any] = next(iter(self._runtime.status()["pipelines"].values()))
        return pipeline

    def _ready(self) -> str:
        conditions = {condition["type"]: condition for condition in self._pipeline()["conditions"]}
        ready = conditions["Ready"]
        return "True" if ready["status"] == "True" else f"{ready['status']} {ready['reason']}"

    def _status(self) -> Any:
        """Return lag, its seconds and its time (set only for old figures), or None if there are no figures."""
        figures = self._pipeline()["figures"]
        return (figures["lag"], figures.get("lagSeconds"), figures.get("figuresAt")) if figures else None

    def _gauge(self) -> float | None:
        for target in json.loads((self._runtime.folder / "targets.json").read_text()):
            if target["labels"]["component"] == "operator":
                text = httpx.get(f"http://{target['targets'][0]}/metrics", timeout=5.0, trust_env=False).text
                lines = "\n".join(line for line in text.splitlines() if _LAG in line)
                for family in text_string_to_metric_families(lines + "\n"):
                    return float(family.samples[0].value) if family.samples else None
        return None

    def _restarts(self) -> dict[str, int]:
        return {name: int(of["restarts"]) for name, of in self._runtime.status()["workloads"].items()}

    def _counted(self) -> int | None:
        query = f'SELECT sum(consumed)::bigint FROM "{self._schema}"._offsets WHERE reader = %s'
        try:
            if self._connection is None:
                self._connection = psycopg.connect(self._postgres, connect_timeout=2, autocommit=True)
                self._connection.execute("SET statement_timeout = '2s'")
            row = self._connection.execute(query.encode(), ("live",)).fetchone()
        except psycopg.OperationalError:
            self._connection = None
            raise
        return None if row is None else row[0]

    def _writable(self) -> bool:
        topic = f"{self._runtime.namespace}.{self._runtime.name}.events"
        for port in self._brokers:
            # A new client only connects to this broker, not to the advertised proxies.
            client = AdminClient({"bootstrap.servers": f"127.0.0.1:{port}", "log_level": 0})
            with suppress(KafkaException):
                partitions = client.list_topics(topic, timeout=_ASK_SECONDS).topics[topic].partitions.values()
                return bool(partitions) and all(
                    partition.leader >= 0 and len(partition.isrs) >= _IN_SYNC for partition in partitions
                )
        return False


def _report(port: int) -> str:
    try:
        body = httpx.get(f"http://127.0.0.1:{port}/health", timeout=5.0, trust_env=False).json()
        down = [name for name, of in body["dependencies"].items() if of["status"] == "down"]
        return f"{body['status']} ({', '.join(down)})" if down else str(body["status"])
    except (httpx.HTTPError, ValueError, KeyError):
        return "silent"
