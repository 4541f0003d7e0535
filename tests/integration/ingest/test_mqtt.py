"""Tests of the bridge from a real MQTT broker to a real Kafka, also during outages."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import Consumer, TopicPartition

from kafka_admin import KafkaAdmin
from kube.pki import Authority
from running.mosquitto import PROGRAM, Mosquitto
from tidemill_contract.events.decoder import QUARANTINE_PREFIX
from tidemill_contract.events.invalid_events import REASON_HEADER
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from waiting import eventually

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not Path(PROGRAM).exists(), reason="mosquitto is not installed: make setup"),
]


def pipeline_config(name: str, broker: str, **mqtt: Any) -> PipelineConfig:
    aggregation = {
        "name": "a", "window": {"type": "tumbling", "size": "1m"}, "metrics": [{"name": "n", "function": "count"}],
    }  # fmt: skip
    source = {
        "fields": [
            {"name": "value", "type": "number"},
            {"name": "place", "type": "string", "from": "header", "path": "mqtt-topic"},
        ],
        "mqtt": {"broker": broker, "topics": ["plant/+/temp"], **mqtt},
    }
    spec = PipelineSpec.model_validate({"source": source, "aggregations": [aggregation]})
    refs = (AggregationRef(name="a"),)
    return PipelineConfig(namespace="tests", name=name, generation=1, spec=spec, aggregations=refs)


class Bridge:
    """The process of a bridge, and the topic that it writes to.

    Attributes:
        folder: contains the config and the log.
        port: where the bridge answers health and metrics.
    """

    def __init__(self, brokers: str, folder: Path, config: PipelineConfig, secret: Path | None = None) -> None:
        self.brokers, self.folder, self.config = brokers, folder, config
        (folder / f"{config.name}.json").write_text(config.to_json())
        self.environment = {"TIDEMILL_MQTT_DIR": str(secret)} if secret is not None else {}
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def log(self) -> str:
        return (self.folder / "bridge.log").read_text()

    def create_topic(self) -> None:
        KafkaAdmin(self.brokers).create(self.config.events_topic, 1)

    def start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_")},
            "TIDEMILL_NAMESPACE": "tests",
            "TIDEMILL_PIPELINE": self.config.name,
            "TIDEMILL_CONFIG_DIR": str(self.folder),
            "TIDEMILL_KAFKA_BROKERS": self.brokers,
            "TIDEMILL_PORT": str(self.port),
            **self.environment,
        }
        with (self.folder / "bridge.log").open("ab") as log:
            command = [sys.executable, "-m", "tidemill_ingest.mqtt"]
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def wait_healthy(self) -> None:
        eventually(
            lambda: self.health().get("status") == "healthy",
            seconds=30,
            what=lambda: f"the bridge is healthy:\n{self.log}",
        )

    def health(self) -> dict[str, Any]:
        try:
            return dict(httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=10).json())
        except httpx.TransportError:
            return {}

    def metric(self, name: str) -> float:
        try:
            text = httpx.get(f"http://127.0.0.1:{self.port}/metrics", timeout=10).text
        except httpx.TransportError:
            return -1.0
        match = re.search(rf"^tidemill_mqtt_{name} (\S+)$", text, re.MULTILINE)
        return float(match[1]) if match else -1.0

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(30)

    def written(self, at_least: int) -> list[Any]:
        """Wait until the topic has at least this many records, and return all records."""
        consumer = Consumer({"bootstrap.servers": self.brokers, "group.id": "x", "enable.auto.commit": False})
        at = TopicPartition(self.config.events_topic, 0, 0)
        try:
            end = eventually(
                lambda: (high := consumer.get_watermark_offsets(at, timeout=10, cached=False)[1]) >= at_least and high,
                seconds=60,
                what=lambda: f"{at_least} records:\n{self.log}\n{self.health()}",
            )
            consumer.assign([at])
            records: list[Any] = []
            while len(records) < end:
                message = consumer.poll(10)
                assert message is not None
                records.append(message)
            return records
        finally:
            consumer.close()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    folder = tmp_path / "broker"
    folder.mkdir()
    mosquitto = Mosquitto(folder)
    mosquitto.start()
    yield mosquitto
    mosquitto.stop()


@pytest.fixture
def make_bridge(servers: Any, tmp_path: Path) -> Iterator[Callable[..., Bridge]]:
    bridges: list[Bridge] = []

    def make(config: PipelineConfig, secret: Path | None = None, *, topic: bool = True) -> Bridge:
        bridges.append(Bridge(servers.kafka, tmp_path, config, secret))
        if topic:
            bridges[-1].create_topic()
        return bridges[-1]

    yield make
    for bridge in bridges:
        if bridge.process is not None and bridge.process.poll() is None:
            bridge.end()


@pytest.mark.parametrize("version", ["v5", "v3.1.1"])
def test_each_message_of_a_subscribed_topic_becomes_a_record(
    broker: Mosquitto, make_bridge: Callable[..., Bridge], version: str
) -> None:
    """The value has the bytes of the message. The MQTT topic is the key and a header.

    The record of a message that is too large is quarantined.
    """
    name = f"plain-{version.replace('.', '-')}"
    bridge = make_bridge(pipeline_config(name, f"mqtt://127.0.0.1:{broker.port}", version=version))
    bridge.start()
    bridge.wait_healthy()
    payloads = [b'{"value": 1}', b"\x00\xff no JSON", b"", b"[" + b"1," * 700_000]
    broker.publish("plant/a/temp", *payloads)
    broker.publish("plant/a/noise", b"not wanted")
    records = bridge.written(4)
    assert [record.value() for record in records[:3]] == payloads[:3]
    assert records[3].value().startswith(QUARANTINE_PREFIX + payloads[3][:1000])
    assert {record.key() for record in records} == {b"plant/a/temp"}
    assert {dict(record.headers())["mqtt-topic"] for record in records} == {b"plant/a/temp"}
    assert dict(records[3].headers())[REASON_HEADER] == b"too_large"
    eventually(
        lambda: bridge.metric("messages_acknowledged_total") == 4, seconds=10, what="all messages are acknowledged"
    )
    assert (bridge.metric("messages_received_total"), bridge.metric("connected")) == (4, 1)
    assert bridge.end() == 0


def test_no_message_is_lost_when_the_bridge_or_the_broker_ends(
    broker: Mosquitto, make_bridge: Callable[..., Bridge]
) -> None:
    """With QoS 1, each message is in Kafka at least once. The bridge is killed, and the broker stops."""
    bridge = make_bridge(pipeline_config("either-end", f"mqtt://127.0.0.1:{broker.port}", maxInFlight=50))
    bridge.start()
    bridge.wait_healthy()
    count = 3000
    with broker.sender() as sender:
        sent = []
        for number in range(count):
            sent.append(sender.publish("plant/b/temp", json.dumps({"value": number}), qos=1))
            if number == 1000:
                bridge.written(200)
                bridge.end(signal.SIGKILL)
            elif number == 1500:
                bridge.start()
            elif number == 2000:
                sent[1000].wait_for_publish(60)
                broker.stop()
            elif number == 2500:
                broker.start()
        for message in sent:
            message.wait_for_publish(60)
    eventually(
        lambda: {json.loads(record.value())["value"] for record in bridge.written(count)} == set(range(count)),
        seconds=60,
        what=lambda: f"all messages are in Kafka:\n{bridge.log}",
    )
    bridge.wait_healthy()
    assert "connected to" in bridge.log


def test_a_message_is_acknowledged_only_when_it_is_in_kafka(
    broker: Mosquitto, make_bridge: Callable[..., Bridge]
) -> None:
    """Until then, health names Kafka, and at most `maxInFlight` messages wait in the bridge.

    The broker keeps all messages, and delivers them again after a kill of the bridge.
    """
    config = pipeline_config("later", f"mqtt://127.0.0.1:{broker.port}", maxInFlight=5)
    bridge = make_bridge(config, topic=False)
    bridge.start()
    eventually(
        lambda: bridge.metric("connected") == 1, seconds=30, what=lambda: f"the bridge is connected:\n{bridge.log}"
    )
    numbers = [str(number).encode() for number in range(20)]
    broker.publish("plant/c/temp", *numbers)
    eventually(lambda: bridge.metric("in_flight_messages") == 5, seconds=20, what="five messages wait")
    health = bridge.health()
    assert (health["status"], health["dependencies"]["kafka"]["status"]) == ("unhealthy", "down")
    assert health["dependencies"]["mqtt"]["status"] == "up"
    assert bridge.metric("messages_acknowledged_total") == 0
    bridge.end(signal.SIGKILL)
    bridge.create_topic()
    bridge.start()
    assert {record.value() for record in bridge.written(20)} == set(numbers)
    eventually(lambda: bridge.health()["status"] == "healthy", seconds=20, what="the bridge is healthy")


def test_a_broker_that_is_down_is_reported_and_reconnected(
    broker: Mosquitto, make_bridge: Callable[..., Bridge]
) -> None:
    """The broker keeps the session, and delivers messages that it received while the bridge was stopped."""
    bridge = make_bridge(pipeline_config("back", f"mqtt://127.0.0.1:{broker.port}"))
    bridge.start()
    bridge.wait_healthy()
    assert bridge.end() == 0
    broker.publish("plant/d/temp", b"1", b"2")
    broker.stop()
    bridge.start()
    eventually(lambda: "mqtt" in bridge.health().get("dependencies", {}), seconds=30, what="the bridge answers")
    down = bridge.health()["dependencies"]
    assert (down["mqtt"]["status"], "refused" in down["mqtt"]["detail"]) == ("down", True)
    broker.start()
    assert [record.value() for record in bridge.written(2)] == [b"1", b"2"]


def test_tls_and_passwords_come_from_the_secret(tmp_path: Path, make_bridge: Callable[..., Bridge]) -> None:
    """The bridge reads them for each connection. A correction needs no restart."""
    authority = Authority(tmp_path / "pki")
    pair = authority.issue("server", common_name="server", names=["localhost"])
    folder = tmp_path / "secured"
    folder.mkdir()
    subprocess.run(
        [PROGRAM.replace("/usr/sbin/mosquitto", "mosquitto_passwd"), "-b", "-c", str(folder / "passwords"), "me", "pw"],
        check=True,
        capture_output=True,
    )
    options = (
        "allow_anonymous false", f"password_file {folder}/passwords", f"certfile {pair.certificate}",
        f"keyfile {pair.key}",
    )  # fmt: skip
    broker = Mosquitto(folder, options)
    broker.start()
    secret = tmp_path / "secret"
    secret.mkdir()
    try:
        bridge = make_bridge(pipeline_config("mqtts", f"mqtts://localhost:{broker.port}"), secret)
        bridge.start()

        def reported() -> str:
            return str(bridge.health().get("dependencies", {}).get("mqtt", {}).get("detail"))

        eventually(lambda: "ca.crt" in reported(), seconds=30, what=lambda: f"ca.crt is missed: {reported()}")
        (secret / "ca.crt").write_bytes(authority.certificate.read_bytes())
        eventually(lambda: "refuses the connection" in reported(), seconds=30, what=lambda: f"no login: {reported()}")
        (secret / "username").write_text("me\n")
        (secret / "password").write_text("pw\n")
        bridge.wait_healthy()
        assert "pw" not in bridge.log
    finally:
        broker.stop()
