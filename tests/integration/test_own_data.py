"""A file as somebody has it, from `tidemill init --run` to answers: each row is counted, or a dead letter says why."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import Producer

from kafka_admin import KafkaAdmin
from own_file import Shop, write_shop
from running_up import ENVIRON, tidemill
from tidemill_operator.laptop.servers import Servers
from waiting import eventually

pytestmark = pytest.mark.integration

PORTS = ("21600", "21700")
WITHIN_SECONDS = 60.0


@dataclass
class Running:
    """`tidemill init --run` in a folder."""

    folder: Path
    name: str
    process: subprocess.Popen[bytes]

    @property
    def output(self) -> str:
        return (self.folder / "init.log").read_text()

    def wait_for(self, pattern: str, *, seconds: float = 120.0) -> re.Match[str]:
        def said() -> re.Match[str] | None:
            found = re.search(pattern, self.output, re.MULTILINE)
            assert found or self.process.poll() is None, self.output
            return found

        return eventually(said, seconds=seconds, what=lambda: f"{pattern}; so far:\n{self.output}")

    def get(self, path: str, **parameters: Any) -> dict[str, Any]:
        """What the API answers about the pipeline."""
        status = json.loads((self.folder / ".tidemill" / "status.json").read_text())
        (url,) = [each["endpoints"]["api"] for key, each in status["pipelines"].items() if key.endswith(self.name)]
        address = f"{url}/v1/pipelines/{self.name}/{path}"
        answer = httpx.get(address, params=parameters, timeout=30, trust_env=False)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def rows(self, path: str) -> list[dict[str, Any]]:
        """All pages of a list."""
        page = self.get(path, limit=1000)
        found = list(page["data"])
        while page["next_cursor"]:
            page = self.get(path, limit=1000, cursor=page["next_cursor"])
            found += page["data"]
        return found

    def counted(self, aggregation: str) -> int:
        """Events in all windows."""
        return sum(row["events"] for row in self.rows(f"aggregates/{aggregation}"))


@contextmanager
def running(folder: Path, *arguments: str, name: str, environ: Mapping[str, str] | None = None) -> Iterator[Running]:
    """`tidemill init … --run`, which is ended afterwards."""
    command = [sys.executable, "-m", "tidemill_operator.cli", "init", *arguments, "--name", name, "--run"]
    command += ["--port-ingest", PORTS[0], "--port-api", PORTS[1]]
    with open(folder / "init.log", "wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=ENVIRON | dict(environ or {}), stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield Running(folder, name, process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def environment_of(servers: Servers) -> dict[str, str]:
    return {
        "TIDEMILL_KAFKA_BROKERS": servers.kafka,
        "TIDEMILL_POSTGRES_URL": servers.postgres.url,
        "TIDEMILL_REDIS_URL": servers.redis,
    }


def assert_each_row_is_there(run: Running, shop: Shop) -> None:
    """Counted by country, or a dead letter with a reason; sums to the cent."""
    refused = sum(shop.refused.values())
    letters = eventually(
        lambda: found if len(found := run.rows("dead-letters")) == refused else None, seconds=60, what="dead letters"
    )
    assert Counter(letter["reason"] for letter in letters) == shop.refused
    assert [letter for letter in letters if not letter["detail"]] == []

    accepted = shop.rows - refused
    eventually(lambda: run.counted("by_land") == accepted, seconds=60, what="each other row is counted")
    rows = run.rows("aggregates/by_land")
    events: Counter[str | None] = Counter()
    revenue: dict[str | None, float] = {}
    for row in rows:
        events[row["land"]] += row["events"]
        revenue[row["land"]] = revenue.get(row["land"], 0.0) + (row["sum_betrag_eur"] or 0.0)
    assert events == shop.events
    assert {land: round(amount, 2) for land, amount in revenue.items()} == {
        land: float(amount) for land, amount in shop.revenue.items()
    }
    assert sum(row["sum_menge"] for row in rows) == shop.quantity


def test_a_small_file_from_init_to_answers(servers: Servers, server_folder: Path) -> None:
    """On the session's servers. Sent once more by hand, nothing is counted again; with `--again` it is."""
    shop, name = write_shop(server_folder / "orders.csv", 1_000), f"own-{uuid.uuid4().hex[:8]}"
    environ = environment_of(servers)
    with running(server_folder, "--from", "orders.csv", name=name, environ=environ) as run:
        told = run.wait_for(r"sent 1,000 events to .*: (\d+) accepted, (\d+) refused")
        assert int(told[2]) == sum(shop.refused.values())
        run.wait_for(r"^  line \d+: missing_field, field datum$", seconds=1)
        run.wait_for(r'^  line \d+: mistyped, field betrag_eur: "auf Anfrage"$', seconds=1)
        assert_each_row_is_there(run, shop)
        assert tidemill("validate", f"{name}.yaml", folder=server_folder).returncode == 0
        resume = ("--resume", "position", "--workers", "3")
        again = tidemill("send", "-f", "orders.csv", "--pipeline", name, *resume, folder=server_folder)
        assert (again.returncode, "1,000 of them were sent before" in again.stdout) == (3, True), again
        assert_each_row_is_there(run, shop)
        nothing = tidemill("send", "-f", "orders.csv", "--pipeline", name, *resume, folder=server_folder)
        assert (nothing.returncode, "sent 0 events" in nothing.stdout) == (0, True), nothing
        twice = tidemill("send", "-f", "orders.csv", "--pipeline", name, "--again", folder=server_folder)
        assert twice.returncode == 3, twice
        both = 2 * (shop.rows - sum(shop.refused.values()))
        eventually(
            lambda: sum(row["events"] for row in run.rows("aggregates/overall")) == both,
            seconds=60,
            what="counted twice",
        )
        run.process.send_signal(signal.SIGTERM)
        assert run.process.wait(60) == 3, run.output


def test_a_topic_from_init_to_answers(servers: Servers, server_folder: Path) -> None:
    """Its newest records show what they are; the pipeline reads the topic as it is, and nothing is sent."""
    namespace = f"ns-{uuid.uuid4().hex[:6]}"
    topic, producer = f"{namespace}.clicks", Producer({"bootstrap.servers": servers.kafka})
    KafkaAdmin(servers.kafka).create(topic, partitions=2)
    for number in range(300):
        at = f"2026-01-01T00:{number // 60:02}:{number % 60:02}Z"
        event = {"createdAt": at, "user": {"id": number % 7, "plan": ("free", "pro", "team")[number % 3]}}
        producer.produce(topic, json.dumps(event).encode() if number != 150 else b"broken")
    assert producer.flush(30) == 0
    with running(server_folder, "--from", topic, name="clicks", environ=environment_of(servers)) as run:
        run.wait_for("^dashboard: http")
        eventually(lambda: run.counted("by_plan") == 299, seconds=60, what="all are counted")
        counts = Counter[str]()
        for row in run.rows("aggregates/by_plan"):
            counts[row["plan"]] += row["events"]
        assert counts == {"free": 99, "pro": 100, "team": 100}
        assert [letter["reason"] for letter in run.rows("dead-letters")] == ["not_json"]


@pytest.mark.slow
def test_fifty_thousand_rows_take_less_than_a_minute(server_folder: Path) -> None:
    """With servers of its own, which `up` starts; the time counts from when these are ready."""
    shop = write_shop(server_folder / "orders.csv", 50_000, seed=7)
    with running(server_folder, "--from", "orders.csv", name="orders") as run:
        run.wait_for("^ready$", seconds=240)
        began = time.monotonic()
        run.wait_for(r"sent 50,000 events to orders", seconds=WITHIN_SECONDS)
        sent = time.monotonic() - began
        assert_each_row_is_there(run, shop)
        took = time.monotonic() - began
        print(f"sent within {sent:.1f} s, all answered within {took:.1f} s of `ready`; load {os.getloadavg()[0]:.1f}")
        assert took < WITHIN_SECONDS
