"""Ten times the load on real servers: processors follow, lag goes, they go down once, and every event counts once.

Each processor has a tenth of a core, as a container's CPU limit would give it (a control group with a quota), and
events are dear: each has a text in which many words are looked for. So one processor is too slow for a load that is
small for the rest of the machine. How fast one is is measured first, and the load made after that, on any machine.
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
from tidemill_operator.observer.scaling_figures import FiguresReader, Watched
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
    """A running `tidemill up` whose processors have a quota."""

    def __init__(self, folder: Path, servers: Servers, name: str, quota: Quota) -> None:
        self.folder, self.servers, self.name, self.quota = folder, servers, name, quota
        self.topic, self.schema = f"default.{name}.events", names.schema("default", name)
        self.group = names.consumer_group("default", name)
        self.reader = FiguresReader(servers.kafka, servers.postgres)
        self.allow(1)
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

    def allow(self, most: int) -> None:
        """Write the pipeline's file; what runs follows it."""
        document = {"apiVersion": "tidemill.dev/v1alpha1", "kind": "AnalyticsPipeline", "metadata": {"name": self.name}}
        scaling = {**SPEC["processor"]["scaling"], "maxReplicas": most}
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
        """Processors that are ready; each that is new gets its quota."""
        found = [state for name, state in self.state.get("workloads", {}).items() if "processor" in name]
        for state in found:
            if state["pid"]:
                try:
                    self.quota.give(state["pid"])
                except (FileNotFoundError, ProcessLookupError):
                    continue  # it has just gone
        return sum(bool(state["ready"]) for state in found)

    def lag(self) -> int:
        watched = Watched(self.schema, self.topic, self.group, names.role(self.schema, "writer"))
        return self.reader.read(watched, ready=1, rolling_out=False).lag

    def decisions(self) -> list[dict[str, Any]]:
        """Those that changed replicas, oldest first."""
        command = [sys.executable, "-m", "tidemill_operator.cli", "explain", self.name, "--output", "json"]
        told = subprocess.run(command, cwd=self.folder, env={**os.environ}, capture_output=True, text=True, check=True)
        return [one for one in json.loads(told.stdout)["decisions"] if one["desired"] != one["current"]]

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
    """Every generation of a consumer group that has members, from Kafka's own records: one a rebalance."""
    consumer = Consumer({
        "bootstrap.servers": servers.kafka, "group.id": "tidemill-test", "enable.auto.commit": False,
        "enable.partition.eof": True,
    })  # fmt: skip
    topic = "__consumer_offsets"
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
    found, ended = set[int](), set[int | None]()
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
            found.add(generation)
    consumer.close()
    return sorted(found)


@pytest.fixture
def up(server_folder: Path, servers: Servers) -> Iterator[Up]:
    quota = Quota(CORES)
    if not quota.works:
        pytest.skip("no control group with a CPU quota can be made here: run as root on a machine with them")
    made = Up(server_folder, servers, "tenfold", quota)
    try:
        yield made
    except BaseException:
        print(made.output)
        raise
    finally:
        made.stop()
        quota.remove()


class Watch:
    """What is seen about twice a second: seconds since it began, processors that are ready, lag."""

    def __init__(self, up: Up) -> None:
        self.up, self.seen = up, list[tuple[float, int, int]]()
        self.began = time.monotonic()

    def until(self, done: Callable[[int, int], bool], *, seconds: float) -> bool:
        while time.monotonic() < self.began + seconds:
            ready, lag = self.up.processors(), self.up.lag()
            self.seen.append((time.monotonic() - self.began, ready, lag))
            if done(ready, lag):
                return True
        return False

    def watch(self, *, seconds: float) -> None:
        self.until(lambda *_: False, seconds=seconds)

    @property
    def followed(self) -> float:
        """Seconds until as many were ready as at the end."""
        return min(at for at, ready, _ in self.seen if ready == self.seen[-1][1])

    @property
    def recovered(self) -> float:
        """Seconds of the longest stretch with too much lag; it has to have ended."""
        longest, since = 0.0, None
        for at, _, lag in self.seen:
            if lag <= LAG_THRESHOLD:
                since = None
                continue
            since = at if since is None else since
            longest = max(longest, at - since)
        return float("inf") if since is not None else longest

    @property
    def peak(self) -> int:
        return max(lag for _, _, lag in self.seen)


def speed(up: Up, load: Load) -> float:
    """Events a second that one processor does of many that are there at once, in its best two seconds.

    It is not disturbed then by what else runs; a mean would make a load that one is enough for.
    """
    load.send(TRIED)
    load.flush()
    seen = list[tuple[float, int]]()

    def done() -> bool:
        consumed = up.consumed()
        if consumed and (not seen or consumed > seen[-1][1]):
            seen.append((time.monotonic(), consumed))
        return consumed == TRIED

    eventually(done, seconds=120.0, what="it does what it can")
    pairs = ((before, after) for before in seen for after in seen if after[0] - before[0] >= 2.0)
    return max((after[1] - before[1]) / (after[0] - before[0]) for before, after in pairs)


def test_ten_times_the_load_is_followed_and_nothing_is_lost(up: Up, servers: Servers) -> None:
    eventually(lambda: up.processors() == 1, seconds=90.0, what="one processor")
    load = Load(servers, up.topic)
    try:
        rate = speed(up, load)
        up.allow(4)
        eventually(lambda: "allowed 1 to 4" in up.scaling["message"], seconds=30.0, what="more are allowed")
        base = round(rate / 5)
        time.sleep(LOOKBACK_SECONDS)  # what was sent to measure it is no load
        load.rate = base
        load.start()
        calm = Watch(up)
        calm.watch(seconds=15.0)
        assert {ready for _, ready, _ in calm.seen} == {1}, "a tenth of the load is one processor's"
        alone = len(generations(servers, up.group))

        load.rate, high = 10 * base, Watch(up)
        high.watch(seconds=STEP_SECONDS)
        ups, told = up.decisions(), up.scaling["message"]
        joined = len(generations(servers, up.group)) - alone

        load.rate, low = 0, Watch(up)
        gone = low.until(lambda ready, lag: ready == 1 and lag == 0, seconds=150.0)
        downs = up.decisions()[len(ups) :]
        # Whoever stays hears of it with its next heartbeat, after the others' processes are gone.
        settled = alone + joined
        eventually(lambda: len(generations(servers, up.group)) > settled, seconds=30.0, what="a rebalance down")
        time.sleep(HEARTBEATS_SECONDS)
        left = len(generations(servers, up.group)) - settled
    finally:
        load.stop()
    print(
        f"one processor does {rate:,.0f} events/s; {base:,} -> {10 * base:,}:"
        f" {ups[-1]['desired'] if ups else 1} processors ready after {high.followed:.1f} s;"
        f" lag {high.peak:,} at most, over {LAG_THRESHOLD:,} for {high.recovered:.1f} s; {joined} rebalances up,"
        f" {left} down;"
        f" one processor {low.seen[-1][0]:.1f} s after the end; {load.sent:,} events\n{told}\n{ups}\n{downs}"
    )
    assert high.seen[-1][1] > 1, "one processor is too slow"
    assert high.followed <= FOLLOW_SECONDS
    assert high.recovered <= CATCH_UP_SECONDS
    assert 1 <= joined <= 3, "each is a pause for all"
    assert gone, low.seen[-1]
    assert [one["desired"] for one in downs] == [1], "down once"
    assert low.seen[-1][0] >= STABILIZATION_SECONDS
    assert left == 1
    assert (load.acknowledged, load.refused) == (load.sent, [])
    for groups in (("carrier",), ("airport",), ("carrier", "airport")):
        assert up.windows(*groups) == load.expected(*groups)
    assert up.consumed() == load.sent
