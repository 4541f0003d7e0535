"""Test of scaling under ten times the load, on real Kafka, Postgres and Redis.

A control group with a quota gives each processor a tenth of a core, as a container's CPU limit does. Events are costly:
the pipeline searches a text of each event for many words. One processor is then too slow for a load that is small for
the rest of the machine. The test first measures the speed of one processor and derives the load from it.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from running.cpu_quota import Quota
from running.event_load import PARTITIONS, WORDS, Load
from tidemill_contract import names
from tidemill_operator.laptop.servers import Servers
from tidemill_operator.observer.scaling_figures import FiguresReader, MeasuredPipeline
from waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.load]

CORES = 0.1
TRIED = 40_000
FOLLOW_SECONDS, CATCH_UP_SECONDS, STABILIZATION_SECONDS, LAG_THRESHOLD = 120.0, 60.0, 60.0, 100_000
STEP_SECONDS, LOOKBACK_SECONDS, HEARTBEATS_SECONDS = 75.0, 20.0, 8.0
NUMBERS = [
    {"name": "events", "function": "count"},
    {"name": "total", "function": "sum", "field": "delay"},
    {"name": "least", "function": "min", "field": "delay"},
    {"name": "most", "function": "max", "field": "delay"},
    {"name": "spread", "function": "variance", "field": "delay"},
    {"name": "median", "function": "quantile", "field": "delay", "q": 0.5},
    {"name": "failed", "function": "sum", "field": WORDS[0]},
]


def aggregation(*groups: str) -> dict[str, Any]:
    window = {"type": "tumbling", "size": "1m", "grace": "1s"}
    return {"name": "by_" + "_".join(groups), "groupBy": [*groups], "window": window, "metrics": NUMBERS}


SPEC: dict[str, Any] = {
    "source": {
        "topic": {"partitions": PARTITIONS, "replicationFactor": 1},
        "fields": [
            {"name": "ts", "type": "timestamp", "required": True},
            {"name": "carrier", "type": "string", "required": True},
            {"name": "airport", "type": "string", "required": True},
            {"name": "delay", "type": "integer", "required": True},
            {"name": "message", "type": "string", "required": True},
        ],
        "eventTime": {"field": "ts", "maxDisorder": "5s"},
    },
    "transform": {"derive": [{"name": word, "expression": f"message ILIKE '%{word}%'"} for word in WORDS]},
    "aggregations": [aggregation("carrier"), aggregation("airport"), aggregation("carrier", "airport")],
    "processor": {
        "scaling": {
            "lagThreshold": LAG_THRESHOLD,
            "pollInterval": "2500ms",
            "lookback": f"{LOOKBACK_SECONDS:g}s",
            "catchUp": f"{CATCH_UP_SECONDS:g}s",
            "scaleUpCooldown": "15s",
            "scaleDownStabilization": f"{STABILIZATION_SECONDS:g}s",
        }
    },
}


class Up:
    """A running `tidemill up` whose processors have a CPU quota."""

    def __init__(self, folder: Path, servers: Servers, name: str, quota: Quota) -> None:
        self.folder, self.servers, self.name, self.quota = folder, servers, name, quota
        self.topic, self.schema = f"default.{name}.events", names.schema("default", name)
        self.group = names.consumer_group("default", name)
        self.reader = FiguresReader(servers.kafka, servers.postgres)
        self.set_max_replicas(1)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_")}
        environ |= {
            "TIDEMILL_KAFKA_BROKERS": servers.kafka,
            "TIDEMILL_POSTGRES_URL": servers.postgres.url,
            "TIDEMILL_REDIS_URL": servers.redis,
        }
        command = [sys.executable, "-m", "tidemill_operator.cli", "up", "-f", "a.yaml"]
        with (folder / "up.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--port-ingest", "0", "--port-api", "0"], cwd=folder, env=environ, stdout=log, stderr=log
            )

    def set_max_replicas(self, maximum: int) -> None:
        """Write the pipeline's file with this maximum of replicas; the running `up` applies it."""
        document = {"apiVersion": "tidemill.dev/v1alpha1", "kind": "AnalyticsPipeline", "metadata": {"name": self.name}}
        scaling = {**SPEC["processor"]["scaling"], "maxReplicas": maximum}
        text = yaml.safe_dump({**document, "spec": {**SPEC, "processor": {"scaling": scaling}}})
        (self.folder / "a.yaml.new").write_text(text)
        (self.folder / "a.yaml.new").rename(self.folder / "a.yaml")

    @property
    def output(self) -> str:
        return (self.folder / "up.log").read_text()[-20_000:]

    @property
    def state(self) -> dict[str, Any]:
        path = self.folder / ".tidemill" / "status.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    @property
    def scaling(self) -> dict[str, Any]:
        return dict(self.state["pipelines"][f"default/{self.name}"].get("scaling") or {})

    def processors(self) -> int:
        """Return the number of ready processors, and give each new processor its quota."""
        states = [state for name, state in self.state.get("workloads", {}).items() if "processor" in name]
        for state in states:
            if state["pid"]:
                try:
                    self.quota.give(state["pid"])
                except (FileNotFoundError, ProcessLookupError):
                    continue  # the process has just ended
        return sum(bool(state["ready"]) for state in states)

    def lag(self) -> int:
        watched = MeasuredPipeline(self.schema, self.topic, self.group, names.role(self.schema, "writer"))
        return self.reader.read(watched, ready=1, rolling_out=False).lag

    def decisions(self) -> list[dict[str, Any]]:
        """Return the decisions that changed the number of replicas, oldest first."""
        command = [sys.executable, "-m", "tidemill_operator.cli", "explain", self.name, "--output", "json"]
        explained = subprocess.run(
            command, cwd=self.folder, env={**os.environ}, capture_output=True, text=True, check=True
        )
        return [
            decision
            for decision in json.loads(explained.stdout)["decisions"]
            if decision["desired"] != decision["current"]
        ]

    def query(self, text: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.servers.postgres.url, options="-c TimeZone=UTC") as connection:
            return connection.execute(text.replace("{s}", f'"{self.schema}"')).fetchall()

    def consumed(self) -> int:
        return int(self.query("SELECT coalesce(sum(consumed), 0) FROM {s}._offsets")[0][0])

    def windows(self, *groups: str) -> dict[tuple[Any, ...], tuple[int, ...]]:
        start, values = (
            "extract(epoch FROM window_start) * 1000",
            f"_count, _sum_delay, _min_delay, _max_delay, _sum_{WORDS[0]}",
        )
        table = "_".join(("by", *groups, "v1"))
        rows = self.query(f"SELECT {', '.join(groups)}, {start}, {values} FROM {{s}}.{table}")
        return {(*row[: len(groups)], int(row[-6])): tuple(int(value) for value in row[-5:]) for row in rows}

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)


def generations(servers: Servers, group: str) -> list[int]:
    """Return every generation of a consumer group with members, from Kafka's records: one for each rebalance."""
    consumer = Consumer({
        "bootstrap.servers": servers.kafka, "group.id": "tidemill-test", "enable.auto.commit": False,
        "enable.partition.eof": True,
    })  # fmt: skip
    topic = "__consumer_offsets"
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
    numbers, ended = set[int](), set[int | None]()
    while len(ended) < len(partitions):
        message = consumer.poll(10.0)
        assert message is not None
        if message.error():
            ended.add(message.partition())
            continue
        key, value = message.key(), message.value()
        # Key: version 2 is a group's metadata, then its name. Value: version, protocol's type, generation, …
        version, length = struct.unpack_from(">hh", key)
        if version == 2 and key[4 : 4 + length].decode() == group and value:
            (kind,) = struct.unpack_from(">h", value, 2)
            (generation,) = struct.unpack_from(">i", value, 4 + kind)
            numbers.add(generation)
    consumer.close()
    return sorted(numbers)


@pytest.fixture
def up(server_folder: Path, servers: Servers) -> Iterator[Up]:
    quota = Quota(CORES)
    if not quota.works:
        pytest.skip("cannot create a control group with a CPU quota: run as root on a machine that has control groups")
    running = Up(server_folder, servers, "tenfold", quota)
    try:
        yield running
    except BaseException:
        print(running.output)
        raise
    finally:
        running.stop()
        quota.remove()


class Watch:
    """Observations of a pipeline, about two a second.

    Attributes:
        observations: seconds since the start, ready processors and lag of each observation.
    """

    def __init__(self, up: Up) -> None:
        self.up, self.observations = up, list[tuple[float, int, int]]()
        self.began = time.monotonic()

    def until(self, stop: Callable[[int, int], bool], *, seconds: float) -> bool:
        while time.monotonic() < self.began + seconds:
            ready, lag = self.up.processors(), self.up.lag()
            self.observations.append((time.monotonic() - self.began, ready, lag))
            if stop(ready, lag):
                return True
        return False

    def watch(self, *, seconds: float) -> None:
        self.until(lambda *_: False, seconds=seconds)

    @property
    def followed(self) -> float:
        """Return the seconds until as many processors were ready as at the end."""
        return min(at for at, ready, _ in self.observations if ready == self.observations[-1][1])

    @property
    def recovered(self) -> float:
        """Return the seconds of the longest time with too much lag; infinity if the lag is still too high."""
        longest, since = 0.0, None
        for at, _, lag in self.observations:
            if lag <= LAG_THRESHOLD:
                since = None
                continue
            since = at if since is None else since
            longest = max(longest, at - since)
        return float("inf") if since is not None else longest

    @property
    def peak(self) -> int:
        return max(lag for _, _, lag in self.observations)


def speed(up: Up, load: Load) -> float:
    """Return the events a second that one processor counts of a backlog, in its best two seconds.

    Other processes disturb it least in these seconds. A load derived from its mean speed could be too small.
    """
    load.send(TRIED)
    load.flush()
    counts = list[tuple[float, int]]()

    def done() -> bool:
        consumed = up.consumed()
        if consumed and (not counts or consumed > counts[-1][1]):
            counts.append((time.monotonic(), consumed))
        return consumed == TRIED

    eventually(done, seconds=120.0, what="the processor counts the backlog")
    pairs = ((before, after) for before in counts for after in counts if after[0] - before[0] >= 2.0)
    return max((after[1] - before[1]) / (after[0] - before[0]) for before, after in pairs)


def test_replicas_follow_ten_times_the_load_and_no_event_is_lost(up: Up, servers: Servers) -> None:
    eventually(lambda: up.processors() == 1, seconds=90.0, what="one processor is ready")
    load = Load(servers, up.topic)
    try:
        rate = speed(up, load)
        up.set_max_replicas(4)
        eventually(lambda: "allowed 1 to 4" in up.scaling["message"], seconds=30.0, what="four replicas are allowed")
        base = round(rate / 5)
        time.sleep(LOOKBACK_SECONDS)  # the scaler forgets the events of the measurement
        load.rate = base
        load.start()
        calm = Watch(up)
        calm.watch(seconds=15.0)
        assert {ready for _, ready, _ in calm.observations} == {1}, "one processor is enough for a tenth of the load"
        alone = len(generations(servers, up.group))

        load.rate, high = 10 * base, Watch(up)
        high.watch(seconds=STEP_SECONDS)
        ups, message = up.decisions(), up.scaling["message"]
        rebalances_up = len(generations(servers, up.group)) - alone

        load.rate, low = 0, Watch(up)
        scaled_down = low.until(lambda ready, lag: ready == 1 and lag == 0, seconds=150.0)
        downs = up.decisions()[len(ups) :]
        # The remaining processor learns of the rebalance with its next heartbeat, after the other processes ended.
        settled = alone + rebalances_up
        eventually(
            lambda: len(generations(servers, up.group)) > settled, seconds=30.0, what="a rebalance after scaling down"
        )
        time.sleep(HEARTBEATS_SECONDS)
        rebalances_down = len(generations(servers, up.group)) - settled
    finally:
        load.stop()
    print(
        f"one processor does {rate:,.0f} events/s; {base:,} -> {10 * base:,}:"
        f" {ups[-1]['desired'] if ups else 1} processors ready after {high.followed:.1f} s;"
        f" lag {high.peak:,} at most, over {LAG_THRESHOLD:,} for {high.recovered:.1f} s; {rebalances_up} rebalances up,"
        f" {rebalances_down} down;"
        f" one processor {low.observations[-1][0]:.1f} s after the end; {load.sent:,} events\n{message}\n{ups}\n{downs}"
    )
    assert high.observations[-1][1] > 1, "one processor is too slow"
    assert high.followed <= FOLLOW_SECONDS
    assert high.recovered <= CATCH_UP_SECONDS
    assert 1 <= rebalances_up <= 3, "each rebalance pauses all processors"
    assert scaled_down, low.observations[-1]
    assert [decision["desired"] for decision in downs] == [1], "one decision scales down"
    assert low.observations[-1][0] >= STABILIZATION_SECONDS
    assert rebalances_down == 1
    assert (load.acknowledged, load.refused) == (load.sent, [])
    for groups in (("carrier",), ("airport",), ("carrier", "airport")):
        assert up.windows(*groups) == load.expected(*groups)
    assert up.consumed() == load.sent
