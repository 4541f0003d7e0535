"""Servers, processes and `tidemill up` itself die while a replay runs under live traffic: it ends, and ends exact.

What is told meanwhile is true: the replay is under way, and done only when its versions answer with every event.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from demo.runtime import Runtime, until
from tidemill_operator.plan.replay import DONE, REPLAYING

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.exhaustive, pytest.mark.matrix]

EVENTS, REPLAYED_A_SECOND, ARRIVE_A_SECOND = 80_000, 2_000, 400
AWAY_SECONDS = 3.0
# A breaker that opens while a server is away tries again this soon.
QUICK = {
    f"TIDEMILL_RESILIENCE__BREAKERS__{name}__OPEN_SECONDS": "2"
    for name in ("DATABASE", "KAFKA_CONSUMER", "KAFKA_PRODUCER", "REDIS")
}


class Faulty:
    """One `up` on servers of its own, all of which may be killed."""

    def __init__(self, own: Any, folder: Path, document: dict[str, Any]) -> None:
        document["metadata"] = {name: document["metadata"][name] for name in ("name", "namespace")}
        (folder / "spec.yaml").write_text(yaml.safe_dump(document))
        self.own, self._folder = own, folder
        self._environment = {
            **QUICK,
            "TIDEMILL_KAFKA_BROKERS": own.kafka,
            "TIDEMILL_POSTGRES_URL": own.postgres.url,
            "TIDEMILL_REDIS_URL": own.redis,
        }
        self.up = Runtime(folder / "spec.yaml", folder / "up", environment=self._environment, any_ports=True)
        self.up.start()

    def tidemill(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another command on the same data folder."""
        command = [sys.executable, "-m", "tidemill_operator.cli", *arguments, "--data-dir", str(self.up.data_dir)]
        return subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False, timeout=120)

    def replay(self) -> dict[str, Any]:
        """How far the replay is, as `up` tells it."""
        (pipeline,) = self.up.status()["pipelines"].values()
        return dict(pipeline["replay"])

    def query(self, text: str) -> list[tuple[Any, ...]]:
        """Rows of a query over the pipeline's schema."""
        with psycopg.connect(self.own.postgres.url, options="-c search_path=evolve__orders") as connection:
            return connection.execute(text.encode()).fetchall()

    def consumed(self, reader: str) -> int:
        """Events that a reader has accounted for."""
        ((found,),) = self.query(f"SELECT coalesce(sum(consumed), 0) FROM _offsets WHERE reader = '{reader}'")
        return int(found)

    def goes_on(self, what: str, *, seconds: float = 90.0) -> None:
        """Wait until both the replay and live traffic have counted more; the replay must not be done by then."""
        reader = self.replay()["reader"]
        waiting = {who: self.consumed(who) for who in (reader, "live")}

        def both() -> bool:
            # Who has counted more need not be asked again: the replay may be done before live traffic goes on.
            for who in [who for who, number in waiting.items() if self.consumed(who) > number]:
                del waiting[who]
            return not waiting

        until(both, seconds=seconds, what=f"both go on after {what}")
        assert self.replay()["phase"] == REPLAYING, f"too short a replay for {what}"

    def kill(self, process: str) -> None:
        """Kill a process of the pipeline; it comes again as another one."""
        pid = self._pid(process)
        os.kill(pid, signal.SIGKILL)
        until(lambda: self._pid(process) not in (0, pid), seconds=30, what=f"{process} is there again")

    def _pid(self, process: str) -> int:
        return int(self.up.status()["workloads"].get(f"evolve.orders-{process}", {}).get("pid") or 0)

    def kill_up(self) -> None:
        """Kill `up`, with which all its processes end, and start it again."""
        state = self.up.status()
        os.kill(int(state["pid"]), signal.SIGKILL)
        until(lambda: "nothing runs" in self.tidemill("replay", "orders").stderr, seconds=30, what="up is gone")
        (self.up.folder / "ready.json").unlink()
        # What ran stays asked for; the servers are not of this `up`.
        self.up.stop()
        self.up.start()


@pytest.fixture
def faulty(own_servers: Any, server_folder: Path, orders: Callable[[], Any]) -> Iterator[Faulty]:
    """One that is ready."""
    found = Faulty(own_servers(durable=True), server_folder, orders())
    yield found
    found.up.stop()


def test_all_that_can_die(faulty: Faulty, make_load: Callable[..., Any], counted: Callable[..., Any]) -> None:
    """Kafka, Postgres and Redis are away for a while; the replay, a processor and `up` are killed."""
    load = make_load(faulty.own.kafka, "evolve.orders.events", ARRIVE_A_SECOND)
    load.send(EVENTS)
    # A replay that begins where live processors are has nothing to read.
    until(lambda: faulty.consumed("live") == EVENTS, seconds=60, what="live processors have counted what is there")
    load.start()
    asked = faulty.tidemill("replay", "orders", "--rate", str(REPLAYED_A_SECOND), "--no-wait")
    assert asked.returncode == 0, asked.stderr
    until(lambda: faulty.replay().get("processed"), seconds=60, what="the replay has begun")
    for name in ("kafka", "postgres", "redis"):
        server = faulty.own.handles[name]
        server.kill()
        time.sleep(AWAY_SECONDS)
        assert faulty.replay()["phase"] == REPLAYING
        server.start()
        faulty.goes_on(f"{name} was away")
    for _ in range(3):
        faulty.kill("replay-0")
    faulty.kill("processor-0")
    faulty.goes_on("processes were killed")
    faulty.kill_up()
    faulty.goes_on("up was killed")
    until(lambda: faulty.replay().get("phase") == DONE, seconds=180, what="the replay is done")
    load.finish()
    until(lambda: faulty.consumed("live") == len(load.events), seconds=60, what="all is counted")
    start = "(extract(epoch FROM window_start) * 1000)::bigint"
    rows = faulty.query(f"SELECT shop, {start}, _count, _sum_amount FROM by_shop_v2")
    assert {(shop, at): (number, int(total)) for shop, at, number, total in rows} == counted(load.events, 10)
    assert faulty.query("SELECT count(*) FROM _dead_letters") == [(0,)]
