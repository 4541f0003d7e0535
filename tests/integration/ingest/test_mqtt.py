"""The bridge between a real broker of MQTT and Kafka: what arrives, and what happens when either side is away."""

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
from tidemill_contract.events.verdicts import REASON_HEADER
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
    """A bridge's process, and the topic that it writes to."""

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
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
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

    def connected(self) -> None:
        eventually(lambda: self.health().get("status") == "healthy", seconds=30, what=lambda: f"it works:\n{self.log}")

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
        found = re.search(rf"^tidemill_mqtt_{name} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else -1.0

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(30)

    def written(self, at_least: int) -> list[Any]:
        """All records of the topic, once there are so many."""
        consumer = Consumer({"bootstrap.servers": self.brokers, "group.id": "x", "enable.auto.commit": False})
        at = TopicPartition(self.config.events_topic, 0, 0)
        try:
            end = eventually(
                lambda: (high := consumer.get_watermark_offsets(at, timeout=10, cached=False)[1]) >= at_least and high,
                seconds=60,
                what=lambda: f"{at_least} records:\n{self.log}\n{self.health()}",
            )
            consumer.assign([at])
            found: list[Any] = []
            while len(found) < end:
                message = consumer.poll(10)
                assert message is not None
                found.append(message)
            return found
        finally:
            consumer.close()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    folder = tmp_path / "broker"
    folder.mkdir()
    found = Mosquitto(folder)
    found.start()
    yield found
    found.stop()


@pytest.fixture
def make_bridge(servers: Any, tmp_path: Path) -> Iterator[Callable[..., Bridge]]:
    made: list[Bridge] = []

    def make(config: PipelineConfig, secret: Path | None = None, *, topic: bool = True) -> Bridge:
        made.append(Bridge(servers.kafka, tmp_path, config, secret))
        if topic:
            made[-1].create_topic()
        return made[-1]

    yield make
    for bridge in made:
        if bridge.process is not None and bridge.process.poll() is None:
            bridge.end()


@pytest.mark.parametrize("version", ["v5", "v3.1.1"])
def test_messages_become_records(broker: Mosquitto, make_bridge: Callable[..., Bridge], version: str) -> None:
    """Their bytes are not changed, the topic is the key and a header, and what is too large is marked."""
    name = f"plain-{version.replace('.', '-')}"
    bridge = make_bridge(pipeline_config(name, f"mqtt://127.0.0.1:{broker.port}", version=version))
    bridge.start()
    bridge.connected()
    payloads = [b'{"value": 1}', b"\x00\xff no JSON", b"", b"[" + b"1," * 700_000]
    broker.publish("plant/a/temp", *payloads)
    broker.publish("plant/a/noise", b"not wanted")
    records = bridge.written(4)
    assert [record.value() for record in records[:3]] == payloads[:3]
    assert records[3].value().startswith(QUARANTINE_PREFIX + payloads[3][:1000])
    assert {record.key() for record in records} == {b"plant/a/temp"}
    assert {dict(record.headers())["mqtt-topic"] for record in records} == {b"plant/a/temp"}
    assert dict(records[3].headers())[REASON_HEADER] == b"too_large"
    eventually(lambda: bridge.metric("messages_acknowledged_total") == 4, seconds=10, what="all are acknowledged")
    assert (bridge.metric("messages_received_total"), bridge.metric("connected")) == (4, 1)
    assert bridge.end() == 0


def test_nothing_is_lost_when_either_end_is_killed(broker: Mosquitto, make_bridge: Callable[..., Bridge]) -> None:
    """QoS 1: each message is in Kafka at least once, whoever ends in the middle."""
    bridge = make_bridge(pipeline_config("either-end", f"mqtt://127.0.0.1:{broker.port}", maxInFlight=50))
    bridge.start()
    bridge.connected()
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
        for one in sent:
            one.wait_for_publish(60)
    eventually(
        lambda: {json.loads(record.value())["value"] for record in bridge.written(count)} == set(range(count)),
        seconds=60,
        what=lambda: f"all are there:\n{bridge.log}",
    )
    bridge.connected()
    assert "connected to" in bridge.log


def test_a_message_is_acknowledged_when_kafka_has_it(broker: Mosquitto, make_bridge: Callable[..., Bridge]) -> None:
    """Until then, health names Kafka, at most `maxInFlight` messages wait, and the broker keeps all of them."""
    config = pipeline_config("later", f"mqtt://127.0.0.1:{broker.port}", maxInFlight=5)
    bridge = make_bridge(config, topic=False)
    bridge.start()
    eventually(lambda: bridge.metric("connected") == 1, seconds=30, what=lambda: f"it is connected:\n{bridge.log}")
    numbers = [str(number).encode() for number in range(20)]
    broker.publish("plant/c/temp", *numbers)
    eventually(lambda: bridge.metric("in_flight_messages") == 5, seconds=20, what="five wait")
    found = bridge.health()
    assert (found["status"], found["dependencies"]["kafka"]["status"]) == ("unhealthy", "down")
    assert found["dependencies"]["mqtt"]["status"] == "up"
    assert bridge.metric("messages_acknowledged_total") == 0
    bridge.end(signal.SIGKILL)
    bridge.create_topic()
    bridge.start()
    assert {record.value() for record in bridge.written(20)} == set(numbers)
    eventually(lambda: bridge.health()["status"] == "healthy", seconds=20, what="it is healthy")


def test_a_broker_that_is_away_is_named_and_found_again(broker: Mosquitto, make_bridge: Callable[..., Bridge]) -> None:
    """Messages that it gets before the bridge is back are delivered: it keeps the session."""
    bridge = make_bridge(pipeline_config("back", f"mqtt://127.0.0.1:{broker.port}"))
    bridge.start()
    bridge.connected()
    assert bridge.end() == 0
    broker.publish("plant/d/temp", b"1", b"2")
    broker.stop()
    bridge.start()
    eventually(lambda: "mqtt" in bridge.health().get("dependencies", {}), seconds=30, what="it answers")
    down = bridge.health()["dependencies"]
    assert (down["mqtt"]["status"], "refused" in down["mqtt"]["detail"]) == ("down", True)
    broker.start()
    assert [record.value() for record in bridge.written(2)] == [b"1", b"2"]


def test_tls_and_passwords_come_from_the_secret(tmp_path: Path, make_bridge: Callable[..., Bridge]) -> None:
    """Both are read for each connection, so a wrong one is corrected without a restart."""
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

        def told() -> str:
            return str(bridge.health().get("dependencies", {}).get("mqtt", {}).get("detail"))

        eventually(lambda: "ca.crt" in told(), seconds=30, what=lambda: f"the authority is missed: {told()}")
        (secret / "ca.crt").write_bytes(authority.certificate.read_bytes())
        eventually(lambda: "refuses the connection" in told(), seconds=30, what=lambda: f"a login is missed: {told()}")
        (secret / "username").write_text("me\n")
        (secret / "password").write_text("pw\n")
        bridge.connected()
        assert "pw" not in bridge.log
    finally:
        broker.stop()
