"""The whole platform in a cluster, installed once: images, both charts, pipelines, load, and what must come out.

`make e2e`. A cluster that was there before stays, with the charts; its pipelines must be none but these tests' own.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
from rich.console import Console

import waiting
from demo.answers import check_accounts, wait_settled
from demo.cluster import OPERATOR_NAMESPACE, PORTS, ClusterPlatform, Kubectl
from demo.compare import compare_all
from demo.expected import milliseconds
from demo.installation import CLUSTER, ROOT, Helm, Steps, prepare, remove_cluster
from demo.replay import Replay, Totals, to_batches
from demo.runtime import DemoError
from documented import ClusterPage
from kube.ability import why_not
from kube.local.cluster import LocalCluster
from kube.local.layout import DEFAULT_FOLDER

_MARK = "tidemill.dev/e2e"
_BASE_MS = int(datetime(2026, 1, 5, tzinfo=UTC).timestamp() * 1000)
_COUNTRIES = ("NO", "SE", "DK", "FI", "IS", "DE", "NL")
_BATCH = 200
_FIGURES = pytest.StashKey[dict[str, str]]()
# Run where the operator is: brokers' names and the database's address are the cluster's own.
_LEFT = """\
import json, os, psycopg
from confluent_kafka.admin import AdminClient
topics = AdminClient({"bootstrap.servers": os.environ["TIDEMILL_KAFKA_BROKERS"]}).list_topics(timeout=20).topics
with psycopg.connect(os.environ["TIDEMILL_POSTGRES_URL"]) as connection:
    schemas = [name for name, in connection.execute("SELECT nspname FROM pg_namespace")]
    users = connection.execute("SELECT usename, count(*) FROM pg_stat_activity WHERE usename IS NOT NULL GROUP BY 1")
    print(json.dumps({"topics": sorted(topics), "schemas": schemas, "connections": dict(users.fetchall())}))
"""

_RECORDS = """\
import os, sys
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
consumer = Consumer({
    "bootstrap.servers": os.environ["TIDEMILL_KAFKA_BROKERS"], "group.id": "e2e", "enable.auto.commit": False
})
partitions = consumer.list_topics(sys.argv[1], timeout=30).topics[sys.argv[1]].partitions
places = [TopicPartition(sys.argv[1], partition, OFFSET_BEGINNING) for partition in partitions]
left = sum(consumer.get_watermark_offsets(place, timeout=30)[1] for place in places)
consumer.assign(places)
while left:
    message = consumer.poll(60)
    if message is None or message.error():
        raise SystemExit(f"{left} records cannot be read: {message and message.error()}")
    sys.stdout.buffer.write(message.value() + b"\\n")
    left -= 1
"""

# What cannot be asked yet is asked again.
eventually = functools.partial(
    waiting.eventually, seconds=120.0, pause_seconds=1.0, retry_on=(DemoError, httpx.TransportError)
)


def pytest_configure(config: pytest.Config) -> None:
    """Figures are gathered by tests and told at the end."""
    config.stash[_FIGURES] = {}


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """What was measured; none of it decides whether a test passes."""
    figures = config.stash[_FIGURES]
    if figures:
        terminalreporter.section("figures")
    for what, figure in figures.items():
        terminalreporter.write_line(f"{what}: {figure}")


@pytest.fixture(autouse=True)
def _recorded(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Iterator[None]:
    """A test's figures are in the table of faults as well, if it is of one."""
    figures = request.config.stash[_FIGURES]
    before = dict(figures)
    yield
    for what, figure in figures.items():
        if before.get(what) != figure:
            record_property(what, figure)


def orders(name: str, namespace: str, **spec: Any) -> dict[str, Any]:
    """A pipeline with a metric of each kind that is exact, and one that is not."""
    fields = {"country": "string", "device": "integer", "amount": "number", "ts": "timestamp"}
    metrics = [
        {"name": "orders", "function": "count"},
        {"name": "revenue", "function": "sum", "field": "amount"},
        {"name": "largest", "function": "max", "field": "amount"},
        {"name": "devices", "function": "sum", "field": "device"},
    ]
    return {
        "apiVersion": "tidemill.dev/v1alpha1",
        "kind": "AnalyticsPipeline",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "source": {
                "topic": {"partitions": 6},
                "fields": [{"name": field, "type": kind, "required": True} for field, kind in fields.items()],
                "key": "device",
                "eventTime": {"field": "ts", "maxDisorder": "1m", "idleTimeout": "10m"},
            },
            "aggregations": [
                {
                    "name": "by_country",
                    "groupBy": ["country"],
                    "window": {"type": "tumbling", "size": "1m", "grace": "10s"},
                    "metrics": metrics,
                    "retention": "3650d",
                },
                {
                    "name": "overall",
                    "groupBy": [],
                    "window": {"type": "hopping", "size": "5m", "hop": "1m"},
                    "metrics": [*metrics, {"name": "mean", "function": "avg", "field": "amount"}],
                    "retention": "3650d",
                },
            ],
            "reclaimPolicy": "Delete",
            "processor": {"flushInterval": "250ms"},
            **spec,
        },
    }


def some_orders(number: int, *, after: int = 0) -> pl.DataFrame:
    """So many events, one each 100 ms of event time."""
    row = pl.int_range(after, after + number, eager=True)
    return pl.DataFrame(
        {
            "country": pl.Series(_COUNTRIES).gather(row % len(_COUNTRIES)),
            "device": row * 7919 % 997,
            "amount": (row * 31 % 1000) / 8,
            "ts": pl.from_epoch(_BASE_MS + 100 * row, time_unit="ms").dt.replace_time_zone("UTC"),
        }
    )


def to_lines(frame: pl.DataFrame) -> list[bytes]:
    """One JSON object an event; timestamps with their milliseconds."""
    times = [name for name, kind in frame.schema.items() if isinstance(kind, pl.Datetime)]
    text = frame.with_columns(pl.col(name).dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ") for name in times).write_ndjson()
    return text.encode().splitlines()


@dataclass
class Sent:
    """Everything that one pipeline was sent, and what ingest said of it."""

    platform: ClusterPlatform
    frames: list[pl.DataFrame] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    repeated: int = 0

    @property
    def number(self) -> int:
        """Of events."""
        return sum(frame.height for frame in self.frames)

    def lines(self) -> list[bytes]:
        """The events as they were sent."""
        return to_lines(pl.concat(self.frames))

    def send(self, frame: pl.DataFrame, *, gate: Callable[[int], None] = lambda _: None) -> None:
        """Send events and wait until they are acknowledged."""
        event_time = self.platform.document["spec"]["source"]["eventTime"]
        times = frame[event_time["field"]].dt.epoch("ms").to_list()
        disorder = milliseconds(event_time["maxDisorder"])
        replay = Replay(self.platform.url("ingest"), self.platform.name, disorder_ms=disorder, gate=gate)
        totals = replay.run(to_batches(to_lines(frame), times, _BATCH))
        self.frames.append(frame)
        self.totals.accepted += totals.accepted
        self.totals.quarantined += totals.quarantined
        self.totals.retried += totals.retried
        self.totals.unanswered += totals.unanswered

    @contextmanager
    def load(self, frame: pl.DataFrame, *, seconds: float = 10.0) -> Iterator[None]:
        """Send events at an even pace while the block runs; the last ones come after it."""
        began, over, failed = time.monotonic(), threading.Event(), []

        def gate(before: int) -> None:
            share = before / frame.height
            while (share > 0.95 and not over.is_set()) or share > (time.monotonic() - began) / seconds:
                time.sleep(0.05)

        def send() -> None:
            try:
                self.send(frame, gate=gate)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        assert failed == []

    def check(self) -> None:
        """Every event is counted once, in every window of every aggregation, and none is a dead letter.

        A machine that does much else may lose an acknowledgement, and the event is sent again: then it may be in the
        topic twice, and counts twice. What counts is what the topic holds, and no other event may be there twice.
        """
        with httpx.Client(timeout=60.0, trust_env=False) as client:
            wait_settled(client, self.platform, self.totals.acknowledged)
            held = sum(self.platform.topic_ends().values())
            assert (self.totals.accepted, self.totals.quarantined) == (self.number, 0)
            self.repeated = held - self.number
            assert 0 <= self.repeated <= self.totals.uncertain
            counted = Totals(accepted=held)
            assert check_accounts(client, self.platform, counted, sent=held) == []
            self.compare(client)

    def compare(self, client: httpx.Client) -> None:
        """All windows are what a batch recomputation finds."""
        spec, base = self.platform.document["spec"], self.platform.url("api")
        events = self.records() if self.repeated else pl.concat(self.frames)
        for found in compare_all(client, base, self.platform.name, spec, events):
            assert found.wrong == 0, f"{found.aggregation}: {found.wrong} differences: {'; '.join(found.differences)}"
            assert found.answered == found.windows > 0, found.aggregation

    def records(self) -> pl.DataFrame:
        """The events as the topic has them: those that were sent, some of them more than once."""
        sent = pl.concat(self.frames)
        topic = f"{self.platform.namespace}.{self.platform.name}.events"
        lines = self.platform.run_in_operator("python", "-c", _RECORDS, topic)
        times = {name: kind for name, kind in sent.schema.items() if isinstance(kind, pl.Datetime)}
        text = pl.read_ndjson(lines.encode(), schema={**sent.schema, **dict.fromkeys(times, pl.String())})
        held = text.with_columns(pl.col(name).str.to_datetime(time_unit="ms", time_zone="UTC") for name in times)
        assert held.unique().sort(held.columns).equals(sent.unique().sort(held.columns))
        return held


@dataclass
class World:
    """The platform in its cluster.

    Attributes:
        stays: whether the cluster outlives these tests.
        made: namespaces that are there.
        dropped: namespaces that nobody waits for any more.
    """

    kubeconfig: Path
    kubectl: Kubectl
    helm: Helm
    figures: dict[str, str]
    local: bool
    stays: bool
    made: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def json(self, *arguments: str) -> Any:
        """What kubectl answers, parsed."""
        return json.loads(self.kubectl(*arguments, "--output", "json"))

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any]:
        """An object; empty: it is not there."""
        answer = self.kubectl("get", kind, name, "--namespace", namespace, "--ignore-not-found", "--output", "json")
        return json.loads(answer) if answer.strip() else {}

    def make_namespace(self, name: str) -> str:
        """A namespace that takes restricted pods only; removed at the end."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted", _MARK: "true"}
        document = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        self.kubectl("apply", "--filename", "-", stdin=json.dumps(document))
        self.made.append(name)
        return name

    def new_namespace(self, prefix: str) -> str:
        """One with a name that no other run has."""
        return self.make_namespace(f"{prefix}-{secrets.token_hex(3)}")

    def platform(self, document: dict[str, Any], components: Sequence[str] = tuple(PORTS)) -> ClusterPlatform:
        """A pipeline that is not applied yet, with the components that clients reach."""
        return ClusterPlatform(document, self.kubectl, components)

    def pipeline(self, document: dict[str, Any]) -> Sent:
        """Apply a pipeline in a namespace that is there, and wait until it is ready."""
        platform = self.platform(document)
        platform.apply()
        return Sent(platform)

    def load_image(self, archive: Path) -> None:
        """Load an image from a file into the cluster."""
        subprocess.run([str(CLUSTER), "load-images", str(archive)], cwd=ROOT, check=True, capture_output=True)

    def pods(self, namespace: str, component: str | None = None) -> list[dict[str, Any]]:
        """Pods of pipelines that are not on their way out."""
        selector = "app.kubernetes.io/name=tidemill"
        selector += f",app.kubernetes.io/component={component}" if component else ""
        found = self.json("get", "pods", "--namespace", namespace, "--selector", selector)["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def scale_operator(self, replicas: int) -> None:
        """Set the number of operators and wait until it is so."""
        target = ("deployment/tidemill", "--namespace", OPERATOR_NAMESPACE)
        self.kubectl("scale", *target, f"--replicas={replicas}")
        self.kubectl("rollout", "status", *target, "--timeout=180s")

    def in_operator(self, *command: str) -> str:
        """Run a command where the operator runs; what it printed."""
        return self.kubectl("exec", "deployment/tidemill", "--namespace", OPERATOR_NAMESPACE, "--", *command)

    def data(self) -> dict[str, Any]:
        """Kafka's topics, Postgres' schemas and the number of its connections by login."""
        return dict(json.loads(self.in_operator("python", "-c", _LEFT).splitlines()[-1]))

    def memory(self, namespace: str) -> dict[str, int]:
        """Bytes that each pod's processes need, as the kubelets count them."""
        found = {}
        for node in self.json("get", "nodes")["items"]:
            path = f"/api/v1/nodes/{node['metadata']['name']}/proxy/stats/summary"
            for pod in json.loads(self.kubectl("get", "--raw", path))["pods"]:
                if pod["podRef"]["namespace"] == namespace and "workingSetBytes" in pod.get("memory", {}):
                    found[pod["podRef"]["name"]] = int(pod["memory"]["workingSetBytes"])
        return found

    def describe(self) -> str:
        """For the report of a failure: pods, what pipelines and events say, the operators' last words."""
        told = []
        for question in (
            "get pods --all-namespaces --output wide",
            "get analyticspipelines --all-namespaces --output wide",
            "get analyticspipelines --all-namespaces --output jsonpath={.items[*].status.conditions}",
            "get events --all-namespaces --sort-by .lastTimestamp",
            f"logs --namespace {OPERATOR_NAMESPACE} --selector app.kubernetes.io/name=tidemill-operator --tail 40",
        ):
            try:
                told.append(f"--- kubectl {question}\n{self.kubectl(*question.split())[-6000:]}")
            except DemoError as error:
                told.append(str(error))
        return "\n".join(told)

    def delete_namespaces(self, names: Sequence[str]) -> None:
        """Remove what tests have made, with its data."""
        for namespace in names:
            self._delete_pipelines(namespace, "--timeout=120s")
            self.kubectl("delete", "namespace", namespace, "--ignore-not-found", "--timeout=180s")
            self.made = [made for made in self.made if made != namespace]

    def drop_namespaces(self, names: Sequence[str]) -> None:
        """Remove them beside the next tests. A cluster that stays is waited for at the end."""
        for namespace in names:
            self._delete_pipelines(namespace, "--wait=false")
            self.kubectl("delete", "namespace", namespace, "--wait=false")
            self.made = [made for made in self.made if made != namespace]
            self.dropped.append(namespace)

    def _delete_pipelines(self, namespace: str, how: str) -> None:
        for item in self.json("get", "analyticspipelines", "--namespace", namespace)["items"]:
            patch = json.dumps({"spec": {"reclaimPolicy": "Delete"}})
            target = ("analyticspipeline", item["metadata"]["name"], "--namespace", namespace)
            self.kubectl("patch", *target, "--type", "merge", "--patch", patch)
            # Deleted before the operator has seen it, the data would stay.
            eventually(partial(self._reclaims, item["metadata"]["name"], namespace), what="it reclaims")
            self.kubectl("delete", *target, how)

    def _reclaims(self, name: str, namespace: str) -> bool:
        found = self.get("analyticspipeline", name, namespace)
        return not found or "tidemill.dev/reclaim" in found["metadata"].get("finalizers", ())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    """With a failure comes what the cluster says."""
    report = yield
    world = getattr(item, "funcargs", {}).get("world")
    if report.failed and world is not None:
        report.sections.append(("cluster", world.describe()))
    return report


@pytest.fixture(scope="session")
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """The cluster with both charts; removed at the end if it was started here and KEEP is not set."""
    provider = os.environ.get("E2E_PROVIDER", "auto")
    if reason := why_not(provider):
        pytest.skip(f"no cluster can run on this machine: {reason}")
    figures = request.config.stash[_FIGURES]
    steps = Steps(Console(stderr=True, width=140))
    # A stop of ours has to stop what we started as well.
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    place = prepare(steps, provider)
    keep = bool(os.environ.get("KEEP"))
    try:
        _require_no_others(place.kubectl)
        helm = Helm(steps, place.kubeconfig, place.images, ROOT / "helm" / "ci" / "values.yaml")
        helm.install_servers()
        helm.install_operator()
        figures["images, charts and cluster are there after"] = f"{steps.total():.0f} s"
        is_local = LocalCluster(DEFAULT_FOLDER).exists()
        stays = keep or not place.started
        found = World(place.kubeconfig, place.kubectl, helm, figures, local=is_local, stays=stays)
        yield found
        if not (keep or place.started):
            found.delete_namespaces(found.made)
            for namespace in found.dropped:
                found.kubectl("delete", "namespace", namespace, "--ignore-not-found", "--timeout=180s")
    finally:
        if place.started and not keep:
            remove_cluster()


def _require_no_others(kubectl: Kubectl) -> None:
    served = kubectl("get", "customresourcedefinitions", "--output", "name")
    if "analyticspipelines.tidemill.dev" not in served:
        return
    namespaces = kubectl("get", "namespaces", "--selector", _MARK, "--output", "jsonpath={.items[*].metadata.name}")
    for item in json.loads(kubectl("get", "analyticspipelines", "--all-namespaces", "--output", "json"))["items"]:
        if item["metadata"]["namespace"] not in namespaces.split():
            name = f"{item['metadata']['namespace']}/{item['metadata']['name']}"
            pytest.exit(f"the cluster has the pipeline {name}, which is not of these tests: use another cluster", 2)


@pytest.fixture(scope="module")
def shop(world: World) -> Iterator[Sent]:
    """A pipeline of two processors that the tests of a module share, in a namespace of its own."""
    namespace = world.new_namespace("shop")
    sent = world.pipeline(orders("orders", namespace, processor={"flushInterval": "250ms", "replicas": 2}))
    yield sent
    sent.platform.leave()
    world.drop_namespaces([namespace])


@pytest.fixture(scope="session")
def page(world: World, tmp_path_factory: pytest.TempPathFactory) -> ClusterPage:
    """The page, of which nothing is typed yet."""
    namespace = world.new_namespace("documented")
    file = tmp_path_factory.mktemp("documented") / "flights.yaml"
    return ClusterPage(world.kubectl, namespace, file)


@pytest.fixture(name="orders", scope="session")
def _orders() -> Callable[..., dict[str, Any]]:
    """Documents of pipelines: `orders("name", "namespace", suspend=True)`."""
    return orders


@pytest.fixture(name="some_orders", scope="session")
def _some_orders() -> Callable[..., pl.DataFrame]:
    """Events for them: `some_orders(1000, after=500)`."""
    return some_orders


@pytest.fixture(name="eventually", scope="session")
def _eventually() -> Callable[..., Any]:
    """Waits for a condition with a deadline."""
    return eventually


@pytest.fixture(scope="session")
def sent_to() -> Callable[[ClusterPlatform], Sent]:
    """Keeps account of what a pipeline is sent."""
    return Sent
