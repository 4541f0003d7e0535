"""Fixture of an installation of an earlier Tidemill, which a test loads into real servers.

`stored/` has the pipeline, its events in two waves, a dump of the schema after the first wave, and the answers of the
earlier Tidemill after each wave. `store.py` writes all of these again, except the pipeline.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

STORED = Path(__file__).parent / "stored"
TOPIC = "stored.orders.events"
QUERIES: tuple[tuple[str, dict[str, str]], ...] = (
    *((name, {}) for name in ("by_shop", "hops", "visits", "again", "clash_value", "clash_order")),
    *((name, {"granularity": "all", "group_by": ""}) for name in ("by_shop", "hops", "again")),
    ("by_shop", {"granularity": "3h"}),
    ("hops", {"group_by": ""}),
    ("again", {"closed": "true", "order": "-window_start", "orders__gte": "3"}),
)
"""Queries of the API: aggregation and parameters."""


def document() -> dict[str, Any]:
    """Return the pipeline."""
    return dict(yaml.safe_load((STORED / "pipeline.yaml").read_text()))


class Installation:
    """The stored pipeline under the local runtime."""

    def __init__(self, local: Any, admin: psycopg.Connection[Any]) -> None:
        self.local, self.admin = local, admin

    def produce(self, wave: int) -> None:
        """Send the events of a wave, each to its stored partition."""
        producer = Producer({"bootstrap.servers": self.local.servers.kafka, "enable.idempotence": True})
        for line in (STORED / "events.ndjson").read_text().splitlines():
            record = json.loads(line)
            if record["wave"] == wave:
                value = json.dumps(record["event"]).encode()
                producer.produce(TOPIC, value, partition=record["partition"])
        assert producer.flush(30) == 0

    def settled(self, events: int) -> bool:
        """Return whether this number of events was counted, and all windows due are closed and published."""
        if self.local.consumed() != events:
            return False
        reached = "(SELECT min(max_event_time) - 3600000 FROM {s}._offsets)"
        (((behind,),),) = [
            self.local.query(
                "SELECT count(*) FROM {s}._aggregations a, {s}._readers r WHERE r.watermark IS DISTINCT FROM "
                f"{reached} OR a.closed_until IS NULL OR a.closed_until < r.watermark - 3600000"
                " OR a.published_until IS DISTINCT FROM a.closed_until"
            )
        ]
        ((corrections,),) = self.local.query("SELECT count(*) FROM {s}._corrections")
        return behind == corrections == 0

    def answers(self) -> list[Any]:
        """Return the API's answers to all queries."""
        return [self._ask(name, parameters) for name, parameters in QUERIES]

    def _ask(self, name: str, parameters: dict[str, str]) -> Any:
        limited = {"limit": "10000", **parameters}
        url = f"{self.local.url('api')}/aggregates/{name}"
        answer = httpx.get(url, params=limited, timeout=30, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def load(self) -> None:
        """Create topic, schema and roles as they were after the first wave."""
        (database,) = self.admin.execute("SELECT current_database()").fetchone() or ("",)
        for text in (STORED / "installation.sql").read_text().split("\n-- then\n"):
            self.admin.execute(text.replace("@database@", database).encode())
        self.admin.execute("SELECT set_config('search_path', 'public', false)")
        kafka = AdminClient({"bootstrap.servers": self.local.servers.kafka})
        kafka.create_topics([NewTopic(TOPIC, 2, 1)])[TOPIC].result(30)
        topics = self.local.actuators.kafka
        created = self.local.eventually(lambda: topics.observe([TOPIC]).get(TOPIC), what="the topic exists")
        # Kafka gives the new topic another id than the stored offsets have.
        self.admin.execute('UPDATE "stored__orders"._offsets SET topic_id = %s', (created.id,))
        self.produce(1)

    def stored_text(self, dump: str) -> str:
        """Return a dump that `load` can execute: with roles first, and without commands of psql."""
        roles = self.admin.execute(
            "SELECT rolname, rolcanlogin, shobj_description(oid, 'pg_authid') FROM pg_roles"
            " WHERE rolname LIKE 'stored\\_\\_orders\\_%' ORDER BY 1"
        ).fetchall()
        statements = []
        for name, login, mark in roles:
            comment = json.loads(mark)
            comment["tidemill"]["database"] = "@database@"
            comment["tidemill"].pop("password", None)
            statements.append(f'CREATE ROLE "{name}" {"LOGIN" if login else "NOLOGIN"};')
            statements.append(f"COMMENT ON ROLE \"{name}\" IS '{json.dumps(comment)}';")
        lines = [line for line in dump.splitlines() if line and not line.startswith(("\\", "--", "SET "))]
        body = "\n".join(lines)
        return "\n".join(statements) + "\n-- then\n" + re.sub(r"(CREATE SCHEMA )", r"\n\1", body) + "\n"


@pytest.fixture
def make_installation(
    make_local: Callable[[dict[str, Any]], Any], admin: psycopg.Connection[Any]
) -> Callable[[dict[str, Any]], Installation]:
    """Return a function that prepares the installation of a pipeline on empty servers."""
    return lambda wanted: Installation(make_local(wanted), admin)


@pytest.fixture(name="stored_document")
def _document() -> Callable[[], dict[str, Any]]:
    """Return a function that reads the stored pipeline."""
    return document
