"""Tests of `tidemill init --run` with a user's file or topic, on real servers.

Each row of the file is counted, or becomes a dead letter with a reason.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
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
from running.up import ENVIRON, tidemill
from tidemill_operator.laptop.servers import Servers
from waiting import eventually

pytestmark = pytest.mark.integration

WITHIN_SECONDS = 60.0


@dataclass
class Running:
    """A process of `tidemill init --run`, its folder and its pipeline."""

    folder: Path
    name: str
    process: subprocess.Popen[bytes]

    @property
    def output(self) -> str:
        return (self.folder / "init.log").read_text()

    def wait_for(self, pattern: str, *, seconds: float = 120.0) -> re.Match[str]:
        def matched() -> re.Match[str] | None:
            match = re.search(pattern, self.output, re.MULTILINE)
            assert match or self.process.poll() is None, self.output
            return match

        return eventually(matched, seconds=seconds, what=lambda: f"{pattern}; so far:\n{self.output}")

    def get(self, path: str, **parameters: Any) -> dict[str, Any]:
        """Return the answer of the API about the pipeline."""
        status = json.loads((self.folder / ".tidemill" / "status.json").read_text())
        (url,) = [each["endpoints"]["api"] for key, each in status["pipelines"].items() if key.endswith(self.name)]
        address = f"{url}/v1/pipelines/{self.name}/{path}"
        answer = httpx.get(address, params=parameters, timeout=30, trust_env=False)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def rows(self, path: str) -> list[dict[str, Any]]:
        """Return the rows of all pages of a list."""
        page = self.get(path, limit=1000)
        rows = list(page["data"])
        while page["next_cursor"]:
            page = self.get(path, limit=1000, cursor=page["next_cursor"])
            rows += page["data"]
        return rows

    def counted(self, aggregation: str) -> int:
        """Return the number of events in all windows."""
        return sum(row["events"] for row in self.rows(f"aggregates/{aggregation}"))


@contextmanager
def running(folder: Path, *arguments: str, name: str, environ: Mapping[str, str] | None = None) -> Iterator[Running]:
    """Start `tidemill init … --run`, and end the process at the end of the context."""
    command = [sys.executable, "-m", "tidemill_operator.cli", "init", *arguments, "--name", name, "--run"]
    command += ["--port-ingest", "0", "--port-api", "0"]
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


def assert_each_row_is_counted_or_refused(run: Running, shop: Shop) -> None:
    """Assert that valid rows are counted by country, with exact sums, and that the others are dead letters."""
    refused = sum(shop.refused.values())
    letters = eventually(
        lambda: rows if len(rows := run.rows("dead-letters")) == refused else None, seconds=60, what="all dead letters"
    )
    assert Counter(letter["reason"] for letter in letters) == shop.refused
    assert [letter for letter in letters if not letter["detail"]] == []

    accepted = shop.rows - refused
    eventually(lambda: run.counted("by_land") == accepted, seconds=60, what="all valid rows are counted")
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


@dataclass
class Small:
    """A file of 1,000 rows that `tidemill init --run` has sent, on the session's servers."""

    run: Running
    shop: Shop

    @property
    def accepted(self) -> int:
        """The number of valid rows."""
        return self.shop.rows - sum(self.shop.refused.values())

    def send(self, file: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run `tidemill send` with a file in the folder."""
        return tidemill("send", "-f", file, "--pipeline", self.run.name, *options, folder=self.run.folder)


@pytest.fixture(scope="module")
def small(servers: Servers) -> Iterator[Small]:
    # If root runs the tests, Postgres runs as another user, and this user cannot read pytest's folders.
    folder = Path(tempfile.mkdtemp(prefix="tidemill-test-"))
    folder.chmod(0o755)
    shop, name = write_shop(folder / "orders.csv", 1_000), f"own-{uuid.uuid4().hex[:8]}"
    with running(folder, "--from", "orders.csv", name=name, environ=environment_of(servers)) as run:
        run.wait_for(r"^dashboard: http")
        yield Small(run, shop)
        run.process.send_signal(signal.SIGTERM)
        assert run.process.wait(60) == 3, run.output  # Some rows became dead letters.
    shutil.rmtree(folder, ignore_errors=True)


def test_each_row_of_a_file_is_counted_or_refused_with_a_reason(small: Small) -> None:
    """The summary names the lines of the first dead letters. The drafted pipeline is valid."""
    run, refused = small.run, sum(small.shop.refused.values())
    run.wait_for(rf"sent 1,000 events to .*: {small.accepted} accepted, {refused} refused", seconds=1)
    run.wait_for(r"^  line \d+: missing_field, field datum$", seconds=1)
    run.wait_for(r'^  line \d+: mistyped, field betrag_eur: "auf Anfrage"$', seconds=1)
    run.wait_for(r"^  line \d+: not_an_object: .line \d+ has 10 cells, there are 8 columns", seconds=1)
    assert_each_row_is_counted_or_refused(run, small.shop)
    assert tidemill("validate", f"{run.name}.yaml", folder=run.folder).returncode == 0


def test_a_file_that_is_sent_again_is_counted_once(small: Small) -> None:
    """The file is sent by `init`, by `tidemill send`, and again with a resume file at its end."""
    resume = ("--resume", "position", "--workers", "3")
    again = small.send("orders.csv", *resume)
    assert (again.returncode, "1,000 events were sent before" in again.stdout) == (3, True), again
    nothing = small.send("orders.csv", *resume)
    assert (nothing.returncode, "sent 0 events" in nothing.stdout) == (0, True), nothing
    assert_each_row_is_counted_or_refused(small.run, small.shop)


def test_a_killed_send_resumes_at_its_position(small: Small) -> None:
    """Each row is counted once, even if `send` was killed within a batch."""
    run, before = small.run, small.run.counted("overall")
    more = write_shop(run.folder / "more.csv", 2_000, seed=2)
    options = ("--resume", "more.position", "--rate", "800", "--workers", "2")
    command = [
        sys.executable,
        "-m",
        "tidemill_operator.cli",
        "send",
        "-f",
        "more.csv",
        "--pipeline",
        run.name,
        *options,
    ]
    position = run.folder / "more.position"
    with subprocess.Popen(
        command, cwd=run.folder, env=ENVIRON, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as sender:
        eventually(position.exists, seconds=60, what="the first batch is sent")
        sender.kill()
    sent = json.loads(position.read_text())["sent"]
    assert 0 < sent < 2_000
    rest = small.send("more.csv", *options)
    assert f"{sent:,} events were sent earlier" in rest.stdout, rest
    after = before + 2_000 - sum(more.refused.values())
    eventually(lambda: run.counted("overall") >= after, seconds=60, what="all rows are counted")
    assert run.counted("overall") == after


def test_sending_with_again_counts_the_same_events_a_second_time(small: Small) -> None:
    before = small.run.counted("overall")
    assert small.send("orders.csv", "--again").returncode == 3
    eventually(
        lambda: small.run.counted("overall") == before + small.accepted,
        seconds=60,
        what="all rows are counted a second time",
    )


def test_a_pipeline_is_drafted_from_an_existing_topic_and_counts_its_events(
    servers: Servers, server_folder: Path
) -> None:
    """The fields are drafted from the newest records. The pipeline reads the existing topic, and nothing is sent."""
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
        eventually(lambda: run.counted("by_plan") == 299, seconds=60, what="all events are counted")
        counts = Counter[str]()
        for row in run.rows("aggregates/by_plan"):
            counts[row["plan"]] += row["events"]
        assert counts == {"free": 99, "pro": 100, "team": 100}
        assert [letter["reason"] for letter in run.rows("dead-letters")] == ["not_json"]


@pytest.mark.slow
def test_fifty_thousand_rows_take_less_than_a_minute(server_folder: Path) -> None:
    """The time starts when the servers that `tidemill init --run` starts are ready."""
    shop = write_shop(server_folder / "orders.csv", 50_000, seed=7)
    with running(server_folder, "--from", "orders.csv", name="orders") as run:
        run.wait_for("^ready$", seconds=240)
        began = time.monotonic()
        run.wait_for(r"sent 50,000 events to orders", seconds=WITHIN_SECONDS)
        sent = time.monotonic() - began
        assert_each_row_is_counted_or_refused(run, shop)
        duration = time.monotonic() - began
        print(f"sent in {sent:.1f} s, all answered in {duration:.1f} s of `ready`; load {os.getloadavg()[0]:.1f}")
        assert duration < WITHIN_SECONDS
