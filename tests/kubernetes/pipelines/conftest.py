"""The operator against a real API server, Kafka and Postgres: single passes in this process, or the process itself.

No node runs pods: a thread says that each pod is ready, so that Deployments roll out.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from psycopg import sql

import waiting
from kube import standin
from kube.controlplane import ControlPlane
from kube.standin import IMAGES, NAMESPACE
from tidemill_contract import names
from tidemill_operator.actuators.base import Connectors
from tidemill_operator.actuators.kafka.clusters import Clusters
from tidemill_operator.actuators.kafka.log import LATEST, KafkaLog
from tidemill_operator.actuators.kafka.topics import KafkaTopics
from tidemill_operator.actuators.kubernetes.api import KINDS, PIPELINE, Api, Document, load
from tidemill_operator.actuators.kubernetes.connect import Clients
from tidemill_operator.actuators.kubernetes.secrets import keys_in_cluster
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.cluster.control import Controller
from tidemill_operator.cluster.events import Recorder
from tidemill_operator.cluster.observed import ObservedStatus
from tidemill_operator.cluster.queue import Result
from tidemill_operator.cluster.scaling import ClusterScaling
from tidemill_operator.cluster.telemetry import Measures
from tidemill_operator.cluster.world import World
from tidemill_operator.cluster_settings import Placement
from tidemill_operator.errors import TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.observer.observers import Observers
from tidemill_operator.observer.scaling_figures import FiguresReader
from tidemill_operator.plan.render import marks
from tidemill_operator.settings import Platform

# A server that is away is asked again.
eventually = functools.partial(waiting.eventually, seconds=60.0, retry_on=(TidemillError,))
CHILDREN = ("Deployment", "Service", "ConfigMap", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy", "Secret")


def pipeline(name: str, namespace: str, **spec: Any) -> Document:
    """A small pipeline."""
    return {
        "apiVersion": PIPELINE.api_version,
        "kind": PIPELINE.kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "source": {
                "topic": {"partitions": 2, "replicationFactor": 1},
                "fields": [{"name": "country", "type": "string"}, {"name": "amount", "type": "number"}],
            },
            "aggregations": [
                {
                    "name": "by_country",
                    "groupBy": ["country"],
                    "window": {"type": "tumbling", "size": "1m"},
                    "metrics": [{"name": "orders", "function": "count"}],
                }
            ],
            **spec,
        },
    }


@dataclass
class Cluster:
    """The cluster as its administrator sees it.

    Attributes:
        held: namespaces whose pods find no node.
    """

    plane: ControlPlane
    api: Api
    held: set[str] = field(default_factory=set)

    def create(self, document: Document) -> Key:
        """Make a pipeline."""
        metadata = self.api.create(document)["metadata"]
        return Key(metadata["namespace"], metadata["name"], metadata["uid"])

    def get(self, key: Key) -> Document:
        """A pipeline as it is; empty: it is gone."""
        return self.api.get(PIPELINE, key.namespace, key.name) or {}

    def patch(self, key: Key, **members: Any) -> None:
        """Change members of a pipeline."""
        self.api.merge(PIPELINE, key.namespace, key.name, members)

    def condition(self, key: Key, kind: str) -> tuple[str, str]:
        """Status and reason of a condition; empty strings: it is not there."""
        conditions = self.get(key).get("status", {}).get("conditions", ())
        found = next((item for item in conditions if item["type"] == kind), {"status": "", "reason": ""})
        return found["status"], found["reason"]

    def await_ready(self, key: Key, *, generation: int | None = None, seconds: float = 90.0) -> None:
        """Wait until a pipeline is ready and nothing is on its way, as of a generation."""

        def ready() -> bool:
            status = self.get(key).get("status", {})
            seen = generation is None or status.get("observedGeneration") == generation
            states = [self.condition(key, kind)[0] for kind in ("Ready", "Progressing")]
            return seen and states == ["True", "False"]

        eventually(ready, seconds=seconds, what=f"{key} is ready: {self.get(key).get('status')}")

    def children(self, namespace: str) -> dict[tuple[str, str], Document]:
        """What the operator has made in a namespace."""
        selector = f"{marks.MANAGED_BY}={marks.MANAGER}"
        return {
            (kind, item["metadata"]["name"]): item
            for kind in CHILDREN
            for item in self.api.list(KINDS[kind], namespace, selector=selector)
        }

    def child(self, namespace: str, kind: str, name: str) -> Document:
        """One of them; empty: it is not there."""
        return self.api.get(KINDS[kind], namespace, name) or {}

    def versions(self, namespace: str) -> dict[tuple[str, str], str]:
        """The versions of all of them and of all pipelines: equal twice means that nothing was written between."""
        items = {**self.children(namespace)}
        items |= {(PIPELINE.kind, item["metadata"]["name"]): item for item in self.api.list(PIPELINE, namespace)}
        return {name: item["metadata"]["resourceVersion"] for name, item in items.items()}


@pytest.fixture(scope="session")
def cluster(control_plane: ControlPlane) -> Iterator[Cluster]:
    """The control plane with the CRD, the operator's namespace, account and rights; pods become ready."""
    api = standin.install(control_plane)
    stopping = threading.Event()
    found = Cluster(control_plane, api)
    kubelet = threading.Thread(target=standin.run_pods, args=(api, stopping), kwargs={"held": found.held}, daemon=True)
    kubelet.start()
    yield found
    stopping.set()
    kubelet.join(10.0)


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of this test that takes restricted pods only; deleted after it."""
    name = f"test-{secrets.token_hex(4)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    yield name
    for item in cluster.api.list(PIPELINE, name):
        cluster.api.merge(PIPELINE, name, item["metadata"]["name"], {"metadata": {"finalizers": []}})
    cluster.api.delete(NAMESPACE, None, name)


@pytest.fixture
def make(cluster: Cluster) -> Callable[..., Key]:
    """Makes a small pipeline: `make("orders", namespace, suspend=True)`."""
    return lambda name, namespace, **spec: cluster.create(pipeline(name, namespace, **spec))


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., Any]:
    """Waits for a condition with a deadline."""
    return eventually


@pytest.fixture(scope="session")
def account(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kubeconfig of the operator's account, which has the operator's rights and no others."""
    return standin.account(cluster.plane, cluster.api, tmp_path_factory.mktemp("account"))


def platform(servers: Any) -> Platform:
    """The platform of the test's servers."""
    return Platform(
        runtime="kubernetes",
        cluster_id="test",
        kafka_brokers=servers.kafka,
        postgres=servers.postgres,
        redis_url=servers.redis,
        partitions=2,
    )


class RecordingApi(Api):
    """Notes every request that changes something, or would."""

    def __init__(self, kubeconfig: Path) -> None:
        super().__init__(load({"KUBECONFIG": str(kubeconfig)}))
        self.written: list[str] = []

    def _call(self, method: str, path: str, **more: Any) -> Document:
        if method != "GET":
            self.written.append(f"{method} {path}")
        return super()._call(method, path, **more)


@dataclass
class Passes:
    """The operator's passes in this process, as often as a test wants, without watches.

    Attributes:
        connect: the connectors of a Kafka Connect that all pipelines share.
        workers: the clients of the operator's own Connect workers.
        settings: members of the platform that differ from those of the other tests.
    """

    servers: Any
    api: RecordingApi
    placement: Placement = field(default_factory=lambda: Placement(images=IMAGES, egress_ports=(5432, 9092)))
    connect: Connectors | None = None
    workers: Clients = field(default_factory=Clients)
    settings: dict[str, Any] = field(default_factory=dict)

    def controller(self, api: Api | None = None, scaling: ClusterScaling | None = None) -> Controller:
        """One that knows nothing of earlier passes."""
        told, servers = api or self.api, self.servers
        world = World(
            api=told,
            kafka=KafkaTopics(servers.kafka),
            postgres=PostgresSchemas(servers.postgres),
            platform=replace(platform(servers), **self.settings),
            placement=self.placement,
            clusters=Clusters(keys_in_cluster(told)),
            connect=self.connect,
            workers=self.workers,
        )
        return Controller(
            world,
            recorder=Recorder(told, "test"),
            observer=self.observer(told),
            measures=Measures(),
            scaling=scaling or self.scaling(told),
        )

    def observer(self, api: Api | None = None) -> Observers:
        """One that looks when a test asks it to."""
        told, servers = api or self.api, self.servers
        clusters, show = Clusters(keys_in_cluster(told)), ObservedStatus(told, Recorder(told, "test")).show
        return Observers(KafkaLog(servers.kafka), clusters, servers.postgres, show)

    def scaling(self, api: Api | None = None, wake: Callable[[Key], None] = lambda _: None) -> ClusterScaling:
        """Decisions that know nothing of earlier ones, made when a test polls."""
        told, reader = api or self.api, FiguresReader(self.servers.kafka, self.servers.postgres)
        return ClusterScaling(told, reader, recorder=Recorder(told, "test"), measures=Measures(), wake=wake)

    def once(self, key: Key) -> Result:
        """One pass."""
        return self.controller().work(key)

    def until(self, key: Key, result: Result, *, seconds: float = 60.0) -> None:
        """Passes until one ends so."""
        eventually(lambda: self.once(key) is result, seconds=seconds, what=f"a pass of {key} ends {result.value}")


@dataclass
class Data:
    """What a pipeline has outside of the cluster."""

    servers: Any

    def topics(self, namespace: str) -> set[str]:
        """All of a namespace's pipelines."""
        found = AdminClient({"bootstrap.servers": self.servers.kafka}).list_topics(timeout=20).topics
        return {name for name in found if name.startswith(f"{namespace}.")}

    def has_schema(self, namespace: str, name: str) -> bool:
        """Whether its tables are there."""
        with psycopg.connect(self.servers.postgres.url) as session:
            wanted = names.schema(namespace, name)
            return session.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (wanted,)).fetchone() is not None


@pytest.fixture
def data(servers: Any) -> Data:
    """Topics and schemas of the test's servers."""
    return Data(servers)


@pytest.fixture
def passes(servers: Any, account: Path) -> Passes:
    """Passes with the operator's own rights."""
    return Passes(servers, RecordingApi(account))


@dataclass
class Process:
    """An operator as a process."""

    process: subprocess.Popen[bytes]
    log: Path
    status_port: int
    webhook_port: int

    def ask(self, path: str) -> tuple[int, str]:
        """What its status server answers; 0: nothing."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.status_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def leads(self) -> bool:
        """Whether it leads."""
        return '"leader": true' in self.ask("/health")[1]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it with a signal; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
        return self.process.wait(40.0)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def start_operator(servers: Any, account: Path, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts operators with the operator's own rights; they are ended after the test."""
    started: list[Process] = []

    def start(*program: str, **further: str) -> Process:
        number, ports = len(started), (free_port(), free_port())
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_")}
        addresses = {
            "TIDEMILL_KAFKA_BROKERS": servers.kafka,
            "TIDEMILL_POSTGRES_URL": servers.postgres.url,
            "TIDEMILL_REDIS_URL": servers.redis,
        }
        told = standin.environment(account, addresses, pod=f"operator-{number}", ports=ports)
        environment = {**inherited, **told, **further}
        log = tmp_path / f"operator-{number}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, *(program or ("-m", "tidemill_operator"))], env=environment, stdout=out, stderr=out
            )
        started.append(Process(process, log, *ports))
        return started[-1]

    yield start
    for one in started:
        one.stop(signal.SIGKILL if one.process.poll() is None else signal.SIGTERM)
        text = one.log.read_text()
        print(f"--- {one.log.name}\n{text[-6000:]}", file=sys.stderr)
        # The rights that `rbac` names are all that it needs.
        assert "is forbidden: User" not in text


@dataclass
class Consumers:
    """What processors or stages would do: as many members of the group as pods are ready.

    Positions move on `work_off`.
    """

    cluster: Cluster
    servers: Any
    key: Key
    partitions: int
    component: str = "processor"
    consumers: list[Consumer] = field(default_factory=list)

    @property
    def topic(self) -> str:
        return f"{self.key.namespace}.{self.key.name}.events"

    def run(self, stopping: threading.Event) -> None:
        """Until a test ends."""
        while not stopping.is_set():
            try:
                live = self.cluster.child(self.key.namespace, "Deployment", f"{self.key.name}-{self.component}")
            except TidemillError:
                continue
            ready = int(live.get("status", {}).get("readyReplicas", 0)) if live else 0
            while len(self.consumers) < ready:
                self.consumers.append(self._member())
            while len(self.consumers) > ready:
                self.consumers.pop().close()
            for consumer in self.consumers:
                consumer.poll(0.05)
            stopping.wait(0.1)
        for consumer in self.consumers:
            consumer.close()

    def _member(self) -> Consumer:
        reader = ("stage",) if self.component == "stage" else ()
        group = names.consumer_group(self.key.namespace, self.key.name, *reader)
        at = {"bootstrap.servers": self.servers.kafka, "group.id": group, "enable.auto.commit": False, "log_level": 0}
        consumer = Consumer(at)
        consumer.subscribe([self.topic])
        return consumer

    def send(self, count: int) -> None:
        """So many events to each partition."""
        producer = Producer({"bootstrap.servers": self.servers.kafka})
        for number in range(count * self.partitions):
            producer.produce(self.topic, b"{}", partition=number % self.partitions)
        assert producer.flush(30.0) == 0

    def work_off(self) -> None:
        """All that there is."""
        places = [(self.topic, partition) for partition in range(self.partitions)]
        ends = KafkaLog(self.servers.kafka).offsets(places, LATEST).at
        if self.component == "stage":
            read = [TopicPartition(topic, partition, end) for (topic, partition), end in ends.items()]
            eventually(lambda: self._committed(read), what="the positions are committed")
            return
        table = sql.Identifier(names.schema(self.key.namespace, self.key.name), "_offsets")
        moved = sql.SQL("UPDATE {} SET next_offset = %s, consumed = %s WHERE reader = 'live' AND partition = %s")
        with psycopg.connect(self.servers.postgres.url) as session:
            for (_, partition), end in ends.items():
                session.execute(moved.format(table), (end, end, partition))

    def _committed(self, read: list[TopicPartition]) -> bool:
        with contextlib.suppress(KafkaException):  # the group is rebalancing
            self.consumers[0].commit(offsets=read, asynchronous=False)
            return True
        return False


@pytest.fixture
def loaded(cluster: Cluster, servers: Any) -> Iterator[Callable[..., Consumers]]:
    """Gives a pipeline processors, or processes of a Python stage."""
    stopping, threads = threading.Event(), []

    def load(key: Key, partitions: int = 4, component: str = "processor") -> Consumers:
        found = Consumers(cluster, servers, key, partitions, component)
        threads.append(threading.Thread(target=found.run, args=(stopping,), daemon=True))
        threads[-1].start()
        return found

    yield load
    stopping.set()
    for thread in threads:
        thread.join(30.0)
