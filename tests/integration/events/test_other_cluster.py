"""Tests of a pipeline whose source topic is on another Kafka cluster, under `tidemill up`.

The other cluster is a real Kafka with TLS and a login.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient

from kafka_admin import KafkaAdmin
from pipelines.pipeline_schema import connect_admin
from running.secured_kafka import PASSWORD, USER, Secured
from running.up import Up, up
from tidemill_operator.laptop.servers import Servers
from waiting import eventually

pytestmark = pytest.mark.integration

NAMESPACE, NAME, TOPIC = "elsewhere", "orders", "crm.orders"
KEY = f"{NAMESPACE}/{NAME}"
PARTITIONS, SHOPS = 3, 5


@pytest.fixture(scope="module")
def other(own_servers: Callable[..., Servers], tmp_path_factory: pytest.TempPathFactory) -> Secured:
    return Secured(own_servers, tmp_path_factory.mktemp("secured"))


def pipeline(name: str, source: dict[str, Any], **spec: Any) -> dict[str, Any]:
    fields = [
        {"name": "ts", "type": "timestamp", "required": True},
        {"name": "shop", "type": "string"},
        {"name": "amount", "type": "integer"},
    ]
    return {
        "apiVersion": "tidemill.dev/v1alpha1",
        "kind": "AnalyticsPipeline",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "source": {**source, "fields": fields, "eventTime": {"field": "ts"}},
            "aggregations": [
                {
                    "name": "by_shop",
                    "groupBy": ["shop"],
                    "window": {"type": "tumbling", "size": "1d"},
                    "metrics": [
                        {"name": "orders", "function": "count"},
                        {"name": "revenue", "function": "sum", "field": "amount"},
                    ],
                }
            ],
            "auth": {"required": False},
            **spec,
        },
    }


def get(url: str) -> httpx.Response:
    return httpx.get(url, timeout=10, trust_env=False)


class Elsewhere:
    """A running `tidemill up` on the session's servers. Its pipeline `orders` reads from the other cluster."""

    def __init__(self, running: Up, servers: Servers, other: Secured) -> None:
        self.up, self.servers, self.other = running, servers, other
        self.address = other.settings["scram"]["bootstrap.servers"]
        self.sent = 0

    @property
    def secret(self) -> Path:
        return self.up.folder / ".tidemill" / "secret-refs" / NAMESPACE / "crm-kafka"

    def send(self, count: int) -> None:
        """Produce events to the other cluster."""
        producer = Producer({"bootstrap.servers": self.other.servers.kafka, "log_level": 0})
        for number in range(self.sent, self.sent + count):
            event = {"ts": "2026-01-01T12:00:00Z", "shop": f"s{number % SHOPS}", "amount": number}
            producer.produce(TOPIC, json.dumps(event), partition=number % PARTITIONS)
        assert producer.flush(60) == 0
        self.sent += count

    def answers(self) -> dict[str, tuple[int, int]]:
        """Return the counts and sums that the API answers, by shop."""
        base = self.up.ready_file["pipelines"][NAME]["api"]
        rows = get(f"{base}/v1/pipelines/{NAME}/aggregates/by_shop.json?from=2026-01-01T00:00:00Z").json()["data"]
        return {row["shop"]: (row["orders"], row["revenue"]) for row in rows}

    def expected(self) -> dict[str, tuple[int, int]]:
        numbers = {f"s{shop}": range(shop, self.sent, SHOPS) for shop in range(SHOPS)}
        return {shop: (len(amounts), sum(amounts)) for shop, amounts in numbers.items()}

    def await_counted(self) -> None:
        eventually(lambda: self.answers() == self.expected(), what=lambda: f"all events are counted: {self.answers()}")

    def health(self) -> dict[str, Any]:
        port = self.up.status["workloads"][f"{NAMESPACE}.{NAME}-processor-0"]["port"]
        return dict(get(f"http://127.0.0.1:{port}/health").json())

    def described(self) -> dict[str, Any]:
        return dict(self.up.status["pipelines"][KEY])

    def condition(self, kind: str) -> dict[str, Any]:
        conditions = {condition["type"]: condition for condition in self.described()["conditions"]}
        return dict(conditions.get(kind, {}))


@pytest.fixture(scope="module")
def elsewhere(servers: Servers, other: Secured, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    folder = tmp_path_factory.mktemp("elsewhere")
    address = other.settings["scram"]["bootstrap.servers"]
    kafka = {"bootstrapServers": address, "secretRef": {"name": "crm-kafka"}}
    scaling = {"mode": "lag", "minReplicas": 1, "maxReplicas": 2, "pollInterval": "5s"}
    documents = [
        pipeline(
            NAME,
            {"kafka": kafka, "topic": {"name": TOPIC, "managed": False}},
            processor={"scaling": scaling, "flushInterval": "100ms"},
        ),
        pipeline("own", {}),
    ]
    (folder / "a.yaml").write_text(yaml.safe_dump_all(documents))
    secret = folder / ".tidemill" / "secret-refs" / NAMESPACE / "crm-kafka"
    secret.mkdir(parents=True)
    login(secret, other, USER, PASSWORD)
    KafkaAdmin(other.servers.kafka).create(TOPIC, PARTITIONS)
    environ = {
        "TIDEMILL_KAFKA_BROKERS": servers.kafka,
        "TIDEMILL_POSTGRES_URL": servers.postgres.url,
        "TIDEMILL_REDIS_URL": servers.redis,
        "TIDEMILL_SESSION_TIMEOUT_MS": "6000",
    }
    with up(folder, environ=environ) as running:
        elsewhere = Elsewhere(running, servers, other)
        elsewhere.send(3_000)
        running.wait_ready()
        yield elsewhere
    with connect_admin(servers) as admin:
        for name in (NAME, "own"):
            admin.execute(f'DROP SCHEMA "{NAMESPACE}__{name}" CASCADE'.encode())


def login(secret: Path, other: Secured, user: str, password: str) -> None:
    """Write the files of the Secret with the login, the CA certificate and the protocol."""
    keys = {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": user,
        "sasl.password": f"{password}\n",
        "ca.crt": other.authority.certificate.read_text(),
    }
    for key, text in keys.items():
        (secret / key).write_text(text)


def test_events_of_the_other_cluster_are_counted(elsewhere: Elsewhere) -> None:
    elsewhere.await_counted()
    eventually(
        lambda: elsewhere.described()["figures"].get("lag") == 0,
        what="the observer measures the lag on the other cluster",
    )
    eventually(
        lambda: "lag" in elsewhere.described()["scaling"],
        what=lambda: f"scaling has a lag: {elsewhere.described()['scaling']}",
    )
    health = elsewhere.health()
    assert health["status"] == "healthy"
    assert {"source_kafka", "kafka"} <= health["dependencies"].keys()


def test_only_the_source_topic_is_on_the_other_cluster(elsewhere: Elsewhere) -> None:
    """Dead letters are written to the platform's Kafka. The consumer group is on the other cluster."""
    producer = Producer({"bootstrap.servers": elsewhere.other.servers.kafka, "log_level": 0})
    producer.produce(TOPIC, b"no event", partition=0)
    assert producer.flush(30) == 0
    consumer = Consumer({
        "bootstrap.servers": elsewhere.servers.kafka,
        "group.id": "elsewhere-test",
        "auto.offset.reset": "earliest",
        "log_level": 0,
    })  # fmt: skip
    consumer.subscribe([f"{NAMESPACE}.{NAME}.dead-letters"])
    letter = eventually(
        lambda: next((message for message in consumer.consume(1, 1.0) if message.error() is None), None),
        what="the dead letter is on the platform's Kafka",
    )
    consumer.close()
    assert letter.value() == b"no event"
    theirs, ours = (AdminClient({"bootstrap.servers": at.kafka, "log_level": 0}) for at in (
        elsewhere.other.servers, elsewhere.servers,
    ))  # fmt: skip
    assert {name for name in theirs.list_topics(timeout=30).topics if not name.startswith("__")} == {TOPIC}
    group = f"tidemill.{NAMESPACE}.{NAME}"
    groups = [{listing.group_id for listing in at.list_consumer_groups().result(30).valid} for at in (theirs, ours)]
    assert [group in ids for ids in groups] == [True, False]


def test_ingest_refuses_events_and_names_the_other_cluster(elsewhere: Elsewhere) -> None:
    base = elsewhere.up.ready_file["pipelines"]["own"]["ingest"]
    answer = httpx.post(f"{base}/v1/pipelines/{NAME}/events", json={"ts": 0}, timeout=10, trust_env=False)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (404, "topic_elsewhere")
    assert elsewhere.address in problem["detail"]


@pytest.mark.matrix
def test_events_are_counted_once_after_the_other_cluster_was_frozen(elsewhere: Elsewhere) -> None:
    """While the cluster is frozen, health and conditions name the cluster. The other pipeline keeps its figures."""
    elsewhere.send(1_000)
    pid = elsewhere.other.servers.handles["kafka"].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        row = eventually(
            lambda: (
                health if (health := elsewhere.health()["dependencies"]["source_kafka"])["status"] == "down" else None
            ),
            what="the processor's health names the cluster",
            seconds=60,
        )
        assert elsewhere.address in row["detail"]
        assert elsewhere.health()["dependencies"]["kafka"]["status"] == "up"
        eventually(
            lambda: (
                elsewhere.condition("Ready").get("status") == "False"
                and elsewhere.address in elsewhere.condition("Ready")["message"]
            ),
            what=lambda: f"Ready names the cluster: {elsewhere.condition('Ready')}",
            seconds=60,
        )
        eventually(
            lambda: elsewhere.address in elsewhere.condition("FiguresUnavailable").get("message", ""),
            what="FiguresUnavailable names the cluster",
            seconds=60,
        )
        assert elsewhere.up.status["pipelines"][f"{NAMESPACE}/own"]["figures"]["lag"] == 0
    finally:
        os.kill(pid, signal.SIGCONT)
    elsewhere.send(1_000)
    elsewhere.await_counted()
    eventually(lambda: elsewhere.health()["status"] == "healthy", what="the processor is healthy again")
    eventually(lambda: elsewhere.condition("Ready").get("status") == "True", what="the pipeline is ready again")


@pytest.mark.matrix
def test_a_changed_login_is_used_without_a_restart(elsewhere: Elsewhere) -> None:
    before = elsewhere.up.status["workloads"][f"{NAMESPACE}.{NAME}-processor-0"]["pid"]
    (elsewhere.secret / "sasl.password").write_text("wrong")
    eventually(
        lambda: elsewhere.health()["dependencies"]["source_kafka"]["status"] == "down",
        what="the wrong password is refused",
    )
    elsewhere.other.add_user("next", "also not secret")
    login(elsewhere.secret, elsewhere.other, "next", "also not secret")
    elsewhere.send(500)
    elsewhere.await_counted()
    eventually(lambda: elsewhere.health()["status"] == "healthy", what="the processor is healthy again")
    assert elsewhere.up.status["workloads"][f"{NAMESPACE}.{NAME}-processor-0"]["pid"] == before
