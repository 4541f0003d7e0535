"""Tests of the operator's two Kafka clients on a real broker with TLS and logins: both accept the same settings."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from bench import free_ports
from kafka_admin import KafkaAdmin
from running.secured_kafka import LOGIN, Secured
from tidemill_contract.resource.kinds.formats import SecretRef
from tidemill_contract.resource.kinds.kafka import KafkaSpec
from tidemill_operator.actuators.kafka.clusters import ANSWER_SECONDS, Clusters, secret_file_reader
from tidemill_operator.actuators.kafka.groups import Group, describe_group
from tidemill_operator.actuators.kafka.reassignments import open_reassignments
from tidemill_operator.actuators.kafka.session import KafkaSession
from tidemill_operator.actuators.kafka.topics import KafkaTopics
from tidemill_operator.cli.main import main
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.laptop.servers import Servers
from tidemill_operator.plan.model import Topic
from waiting import eventually

pytestmark = pytest.mark.integration

DESCRIBE_GROUP = """
import json, sys
from tidemill_contract.resource.kinds.formats import SecretRef
from tidemill_contract.resource.kinds.kafka import KafkaSpec
from tidemill_operator.actuators.kafka.clusters import ANSWER_SECONDS, Clusters, secret_file_reader
from tidemill_operator.actuators.kafka.groups import describe_group
from tidemill_operator.errors import TidemillError

try:
    describe_group(json.loads(sys.argv[1]), "nobody", 3.0)
except TidemillError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def secured(own_servers: Callable[..., Servers], tmp_path_factory: pytest.TempPathFactory) -> Secured:
    return Secured(own_servers, tmp_path_factory.mktemp("secured"))


@pytest.mark.parametrize("shown", ["plain", "scram", "certificate-files", "certificate-texts"])
def test_both_clients_connect_with_the_same_settings(secured: Secured, shown: str) -> None:
    settings = secured.settings[shown]
    topic = Topic(f"secured.{shown}.events", 2, 1, {})
    topics = KafkaTopics(settings["bootstrap.servers"], config=settings)
    assert [outcome.name for outcome in topics.ensure([topic])] == [topic.name]
    assert topics.observe([topic.name])[topic.name].partitions == 2

    def described() -> Group | None:
        with contextlib.suppress(TidemillError):  # Kafka may still be creating the coordinator
            return describe_group(settings, "nobody", 10.0)
        return None

    eventually(lambda: described() == Group(0, rebalancing=False), what="the description of a group without members")
    with open_reassignments(settings, 10.0) as moving:
        assert moving.in_progress(topic.name, [0, 1]) == {}


@pytest.mark.parametrize(
    ("shown", "why"),
    [
        ("wrong-password", r"refuses the client \(.*Invalid username or password"),
        ("unknown-authority", r"refuses the client \(.*certificate verify failed"),
        # The broker closes the connection after the handshake, and librdkafka gives no reason.
        ("no-certificate", "does not answer"),
    ],
)
def test_the_operator_reports_why_kafka_refuses_a_connection(secured: Secured, shown: str, why: str) -> None:
    settings = secured.settings[shown]
    with pytest.raises(TidemillError, match=f"describing the cluster: Kafka at localhost:[0-9]+ {why}") as raised:
        KafkaTopics(settings["bootstrap.servers"], config=settings, timeout_seconds=3.0).broker_count()
    assert raised.value.reason is Reason.UNREACHABLE
    assert ("client settings for TLS and SASL" in str(raised.value)) == ("refuses the client" in str(raised.value))
    # Another process asks, since kafka-python leaves refused sockets to the garbage collector.
    process = subprocess.run(
        [sys.executable, "-c", DESCRIBE_GROUP, json.dumps(settings)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert process.stdout.startswith("describing consumer group nobody: Kafka"), process.stdout


@pytest.mark.parametrize(("shown", "refusal"), [("scram", ""), ("wrong-password", "Invalid username or password")])
def test_init_reads_a_topic_with_the_same_settings(
    secured: Secured,
    shown: str,
    refusal: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The settings come from the file in TIDEMILL_KAFKA_CONFIG, as for all commands and processes."""
    allowed, settings = secured.settings["plain"], dict(secured.settings[shown])
    KafkaTopics(allowed["bootstrap.servers"], config=allowed).ensure([Topic("secured.clicks", 1, 1, {})])
    producer = Producer(allowed)
    producer.produce("secured.clicks", b'{"at": "2026-01-01T00:00:00Z", "plan": "free"}')
    assert producer.flush(30) == 0
    monkeypatch.setenv("TIDEMILL_KAFKA_BROKERS", settings.pop("bootstrap.servers"))
    (tmp_path / "client.json").write_text(json.dumps(settings))
    monkeypatch.setenv("TIDEMILL_KAFKA_CONFIG", str(tmp_path / "client.json"))
    code = main(["init", "--from", "secured.clicks", "--data-dir", str(tmp_path)])
    printed = capsys.readouterr()
    assert code == (1 if refusal else 0), printed.err
    assert ("name: plan" in printed.out) is not bool(refusal)
    assert refusal in printed.err
    assert ("TIDEMILL_KAFKA_CONFIG" in printed.err) is bool(refusal)


def test_another_cluster_is_read_with_the_keys_of_a_secret(secured: Secured, tmp_path: Path) -> None:
    """The platform's Kafka is refused as another cluster under any address. A missing topic is not created."""
    settings, folder = secured.settings["scram"], tmp_path / "shop" / "crm"
    kafka = KafkaSpec(bootstrap_servers=settings["bootstrap.servers"], secret_ref=SecretRef(name="crm"))
    keys = {"sasl.mechanism": "SCRAM-SHA-512", **LOGIN, "ca.crt": secured.authority.certificate.read_text()}
    admin = AdminClient({"bootstrap.servers": secured.servers.kafka, "log_level": 0})
    KafkaAdmin(secured.servers.kafka).create("crm.orders", 3)
    before = set(admin.list_topics(timeout=30).topics)

    def error_of(clusters: Clusters) -> str:
        with pytest.raises(TidemillError) as refused:
            clusters.topic("shop", kafka, "crm.orders")
        return str(refused.value)

    clusters = Clusters(secret_file_reader(tmp_path))
    assert error_of(clusters).startswith("spec.source.kafka.secretRef: Secret shop/crm: there is no folder")
    folder.mkdir(parents=True)
    (folder / "sasl.username").write_text("me")
    assert "Secret shop/crm: sasl.mechanism is missing; add the key to the Secret" in error_of(clusters)
    for key, text in keys.items():
        (folder / key).write_text(text)
    topic = clusters.topic("shop", kafka, "crm.orders")
    assert topic is not None
    assert topic.partitions == 3
    assert clusters.topic("shop", kafka, "crm.missing") is None
    assert clusters.open("shop", kafka) is clusters.open("shop", kafka)
    (folder / "sasl.password").write_text("wrong")
    refusal = error_of(clusters)
    assert settings["bootstrap.servers"] in refusal
    assert refusal.endswith("check the login in the Secret shop/crm")
    (folder / "sasl.password").write_text(LOGIN["sasl.password"])
    clusters = Clusters(secret_file_reader(tmp_path), KafkaSession(secured.servers.kafka, {}, 10.0))
    assert error_of(clusters).endswith("is the platform's own Kafka; take out spec.source.kafka")
    assert set(admin.list_topics(timeout=30).topics) == before


def test_a_cluster_that_does_not_answer_is_not_asked_again_at_once(tmp_path: Path) -> None:
    """A second call within a moment fails at once with the same error."""
    (port,) = free_ports(1)
    kafka, clusters = KafkaSpec(bootstrap_servers=f"127.0.0.1:{port}"), Clusters(secret_file_reader(tmp_path))
    took = []
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(TidemillError, match=f"Kafka at 127.0.0.1:{port} does not answer") as refused:
            clusters.topic("shop", kafka, "crm.orders")
        assert refused.value.reason is Reason.UNREACHABLE
        took.append(time.monotonic() - began)
    assert took[0] < 2 * ANSWER_SECONDS
    assert took[1] < 1.0
