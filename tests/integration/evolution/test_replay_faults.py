"""Tests that a replay under live traffic is exact although servers, processes and `tidemill up` are killed.

During a fault, the status says that the replay is under way. It is done only when its version has every event.
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
# A breaker that has opened during an outage retries after two seconds.
QUICK = {
    f"TIDEMILL_RESILIENCE__BREAKERS__{name}__OPEN_SECONDS": "2"
    for name in ("DATABASE", "KAFKA_CONSUMER", "KAFKA_PRODUCER", "REDIS")
}


class Faulty:
    """A `tidemill up` with servers that a test may kill."""

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
        """Run a command on the same data folder."""
        command = [sys.executable, "-m", "tidemill_operator.cli", *arguments, "--data-dir", str(self.up.data_dir)]
        return subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False, timeout=120)

    def replay(self) -> dict[str, Any]:
        """Return the status of the replay from `up`."""
        (pipeline,) = self.up.status()["pipelines"].values()
        return dict(pipeline["replay"])

    def query(self, text: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query over the pipeline's schema."""
        with psycopg.connect(self.own.postgres.url, options="-c search_path=evolve__orders") as connection:
            return connection.execute(text.encode()).fetchall()

    def consumed(self, reader: str) -> int:
        """Return the number of events that a reader has processed."""
        ((consumed,),) = self.query(f"SELECT coalesce(sum(consumed), 0) FROM _offsets WHERE reader = '{reader}'")
        return int(consumed)

    def await_progress(self, what: str, *, seconds: float = 90.0) -> None:
        """Wait until both the replay and live processors have counted more events. The replay must still run then."""
        reader = self.replay()["reader"]
        waiting = {who: self.consumed(who) for who in (reader, "live")}

        def both() -> bool:
            # A reader with progress is not queried again: the replay may end before live processors have progress.
            for who in [who for who, number in waiting.items() if self.consumed(who) > number]:
                del waiting[who]
            return not waiting

        until(both, seconds=seconds, what=f"replay and live processors count more after {what}")
        assert self.replay()["phase"] == REPLAYING, f"the replay was too short to test {what}"

    def kill(self, process: str) -> None:
        """Kill a process of the pipeline and wait until `up` has started another."""
        pid = self._pid(process)
        os.kill(pid, signal.SIGKILL)
        until(lambda: self._pid(process) not in (0, pid), seconds=30, what=f"{process} runs again")

    def _pid(self, process: str) -> int:
        return int(self.up.status()["workloads"].get(f"evolve.orders-{process}", {}).get("pid") or 0)

    def kill_up(self) -> None:
        """Kill `up`, whose processes end with it, and start it again."""
        state = self.up.status()
        os.kill(int(state["pid"]), signal.SIGKILL)
        until(lambda: "nothing runs" in self.tidemill("replay", "orders").stderr, seconds=30, what="up has ended")
        (self.up.folder / "ready.json").unlink()
        # The request for the replay remains, and the servers do not belong to this `up`.
        self.up.stop()
        self.up.start()


@pytest.fixture
def faulty(own_servers: Any, server_folder: Path, orders: Callable[[], Any]) -> Iterator[Faulty]:
    """Start `tidemill up` with durable servers, and stop it after the test."""
    running = Faulty(own_servers(durable=True), server_folder, orders())
    yield running
    running.up.stop()


def test_a_replay_is_exact_through_outages_and_kills(
    faulty: Faulty, make_load: Callable[..., Any], counted: Callable[..., Any]
) -> None:
    """Kafka, Postgres and Redis are killed and restarted. The replay, a processor and `up` are killed."""
    load = make_load(faulty.own.kafka, "evolve.orders.events", ARRIVE_A_SECOND)
    load.send(EVENTS)
    # The replay reads up to the positions of live processors, which must not be zero.
    until(lambda: faulty.consumed("live") == EVENTS, seconds=60, what="live processors have counted all events")
    load.start()
    replay = faulty.tidemill("replay", "orders", "--rate", str(REPLAYED_A_SECOND), "--no-wait")
    assert replay.returncode == 0, replay.stderr
    until(lambda: faulty.replay().get("processed"), seconds=60, what="the replay has begun")
    for name in ("kafka", "postgres", "redis"):
        server = faulty.own.handles[name]
        server.kill()
        time.sleep(AWAY_SECONDS)
        assert faulty.replay()["phase"] == REPLAYING
        server.start()
        faulty.await_progress(f"an outage of {name}")
    for _ in range(3):
        faulty.kill("replay-0")
    faulty.kill("processor-0")
    faulty.await_progress("kills of processes")
    faulty.kill_up()
    faulty.await_progress("the kill of up")
    until(lambda: faulty.replay().get("phase") == DONE, seconds=180, what="the replay is done")
    load.finish()
    until(lambda: faulty.consumed("live") == len(load.events), seconds=60, what="all events are counted")
    start = "(extract(epoch FROM window_start) * 1000)::bigint"
    rows = faulty.query(f"SELECT shop, {start}, _count, _sum_amount FROM by_shop_v2")
    assert {(shop, at): (number, int(total)) for shop, at, number, total in rows} == counted(load.events, 10)
    assert faulty.query("SELECT count(*) FROM _dead_letters") == [(0,)]
