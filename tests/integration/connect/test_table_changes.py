"""Tests that `tidemill up` counts the changes of a table exactly while Connect workers are killed.

Debezium reads the table of a real Postgres.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from running.up import Up, up
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.laptop.servers.postgres import postgres_server
from tidemill_operator.processes.ports import Ports
from waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.matrix]

PASSWORD = "only-in-the-secret"
ROUNDS, KILLED_AT = 60, (20, 40)
SECONDS = 120.0
PIPELINE = """\
apiVersion: tidemill.dev/v1alpha1
kind: AnalyticsPipeline
metadata: {name: orders, namespace: shop}
spec:
  source:
    topic: {partitions: 3}
    format: {envelope: debezium, deletes: event}
    fields:
      - {name: id, type: integer, required: true}
      - {name: shop, type: string, required: true}
      - {name: amount, type: decimal, scale: 2}
      - {name: at, type: timestamp, required: true}
      - {name: op, type: string, from: envelope}
    eventTime: {field: at, maxDisorder: 1h}
    connectors:
      - name: shop_db
        class: io.debezium.connector.postgresql.PostgresConnector
        config:
          database.hostname: 127.0.0.1
          database.port: "%(port)s"
          database.dbname: tidemill
          database.user: reader
          table.include.list: public.orders
          heartbeat.interval.ms: "1000"
          poll.interval.ms: "100"
        secrets:
          database.password: {name: shop-db, key: password}
  aggregations:
    - name: by_op
      groupBy: [op]
      window: {type: tumbling, size: 1d}
      metrics:
        - {name: changes, function: count}
        - {name: total, function: sum, field: amount}
"""


@contextmanager
def shop(folder: Path) -> Iterator[PostgresAddress]:
    """Start a Postgres with logical replication and a table of 200 orders."""
    folder.mkdir()
    folder.chmod(0o755)
    settings = {"wal_level": "logical", "max_wal_senders": "4"}
    server, address = postgres_server(folder, Ports(folder / "ports.json"), durable=False, settings=settings)
    server.start()
    try:
        with psycopg.connect(address.url, autocommit=True) as connection:
            connection.execute(
                "CREATE TABLE orders (id serial PRIMARY KEY, shop text, amount numeric(12, 2), at timestamptz)"
            )
            connection.execute("ALTER TABLE orders REPLICA IDENTITY FULL")
            connection.execute(f"CREATE ROLE reader LOGIN REPLICATION SUPERUSER PASSWORD '{PASSWORD}'")
            connection.execute(
                "INSERT INTO orders (shop, amount, at) SELECT 'first', i * 0.25, '2026-03-01T12:00:00Z'"
                " FROM generate_series(1, 200) i"
            )
        yield address
    finally:
        server.stop()


class Truth:
    """The expected counts: number of changes and sum of amounts by operation, as Debezium names operations."""

    def __init__(self) -> None:
        self.changes: Counter[str] = Counter()
        self.totals: dict[str, Decimal] = {}
        self._random = random.Random(7)

    def count(self, op: str, amount: Decimal) -> None:
        self.changes[op] += 1
        self.totals[op] = self.totals.get(op, Decimal(0)) + amount

    def round(self, connection: psycopg.Connection[Any]) -> None:
        """Insert, update and delete a few rows, each statement in its own transaction."""
        for _ in range(20):
            amount = Decimal(self._random.randrange(1, 100_000)) / 100
            match self._random.choice("ccuud"):
                case "c":
                    sql = "INSERT INTO orders (shop, amount, at) VALUES ('x', %s, '2026-03-01T13:00:00Z')"
                    connection.execute(sql, [amount])
                    self.count("c", amount)
                case "u":
                    sql = "UPDATE orders SET amount = %s WHERE id = (SELECT id FROM orders ORDER BY random() LIMIT 1)"
                    if connection.execute(sql, [amount]).rowcount:
                        self.count("u", amount)
                case "d":
                    sql = "DELETE FROM orders WHERE id = (SELECT id FROM orders ORDER BY id LIMIT 1) RETURNING amount"
                    row = connection.execute(sql).fetchone()
                    if row:
                        self.count("d", row[0])


def api_totals(running: Up) -> tuple[dict[str, int], dict[str, Decimal]]:
    """Return the API's number of changes and sum of amounts by operation, over all windows."""
    url = running.ready_file["pipelines"]["orders"]["api"]
    answer = httpx.get(f"{url}/v1/pipelines/orders/aggregates/by_op.json", timeout=10, trust_env=False).json()
    changes: Counter[str] = Counter()
    totals: dict[str, Decimal] = {}
    for row in answer["data"]:
        changes[row["op"]] += row["changes"]
        totals[row["op"]] = totals.get(row["op"], Decimal(0)) + Decimal(row["total"])
    return dict(changes), totals


def test_changes_of_a_table_count_once_although_the_worker_is_killed(server_folder: Path) -> None:
    """Snapshot, inserts, updates and deletes are counted. The password is only in the files of secrets."""
    truth = Truth()
    with shop(server_folder / "shop") as address, psycopg.connect(address.url, autocommit=True) as connection:
        (total,) = connection.execute("SELECT sum(amount) FROM orders").fetchone() or (0,)
        truth.changes["r"], truth.totals["r"] = 200, total
        (server_folder / "a.yaml").write_text(PIPELINE % {"port": address.port})
        secret = server_folder / ".tidemill" / "secret-refs" / "shop" / "shop-db" / "password"
        secret.parent.mkdir(parents=True)
        secret.write_text(f"{PASSWORD}\n")
        with up(server_folder) as running:
            running.wait_ready()
            eventually(lambda: api_totals(running)[0] == {"r": 200}, what="the snapshot", seconds=SECONDS)
            for number in range(ROUNDS):
                truth.round(connection)
                if number in KILLED_AT:
                    pid = running.status["servers"]["connect"]["pid"]
                    os.kill(pid, signal.SIGKILL)
                    eventually(
                        lambda pid=pid: running.status["servers"]["connect"]["pid"] not in (pid, None),
                        what="another worker",
                        seconds=SECONDS,
                    )
            wanted = dict(truth.changes), truth.totals
            eventually(
                lambda: api_totals(running) == wanted,
                what=lambda: f"{wanted}; answered {api_totals(running)}; {running.output}",
                seconds=SECONDS,
            )
            (rows, left) = connection.execute("SELECT count(*), sum(amount) FROM orders").fetchone() or (0, 0)
            changes, _ = api_totals(running)
            assert changes["r"] + changes["c"] - changes["d"] == rows
            assert left is not None
            eventually(lambda: running.status["ready"], what="ready again", seconds=SECONDS)
            pipeline = running.status["pipelines"]["shop/orders"]
            assert pipeline["connectors"][0]["tasks"] == [{"id": 0, "state": "RUNNING"}]
            port = running.status["servers"]["connect"]["port"]
            stored = httpx.get(f"http://127.0.0.1:{port}/connectors/shop.orders.shop_db", timeout=10, trust_env=False)
            assert PASSWORD not in stored.text
            letters = httpx.get(
                f"{running.ready_file['pipelines']['orders']['api']}/v1/pipelines/orders/dead-letters.json",
                timeout=10,
                trust_env=False,
            ).json()
            assert letters["data"] == []

            # Connect deletes a connector that the spec no longer has. The database keeps its replication slot.
            text = (server_folder / "a.yaml").read_text()
            start, end = text.index("    connectors:"), text.index("  aggregations:")
            (server_folder / "a.yaml").write_text(text[:start] + text[end:])
            names = f"http://127.0.0.1:{port}/connectors"
            eventually(
                lambda: httpx.get(names, timeout=10, trust_env=False).json() == [],
                what="the connector is deleted",
                seconds=SECONDS,
            )
        written = [path for path in (server_folder / ".tidemill").rglob("*") if path.is_file()]
        with_password = [path for path in written if PASSWORD.encode() in path.read_bytes()]
        own = server_folder / ".tidemill" / "connect" / "secrets" / "shop" / "shop-db" / "password"
        assert sorted(with_password) == sorted([secret, own]), json.dumps([str(path) for path in with_password])
