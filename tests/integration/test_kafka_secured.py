"""The operator's two Kafka clients take the same settings, of TLS and of logins, on a real broker."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography.hazmat.primitives import serialization

from kube.pki import Authority
from tidemill_operator.actuators.kafka.groups import Group, describe_group
from tidemill_operator.actuators.kafka.moves import moves
from tidemill_operator.actuators.kafka.topics import KafkaTopics
from tidemill_operator.cli.main import main
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.laptop.servers import Servers, kafka
from tidemill_operator.plan.model import Topic
from tidemill_operator.processes.ports import Ports
from waiting import eventually

pytestmark = pytest.mark.integration

USER, PASSWORD = "tidemill", "not secret"
ASKING = """
import json, sys
from tidemill_operator.actuators.kafka.groups import describe_group
from tidemill_operator.errors import TidemillError

try:
    describe_group(json.loads(sys.argv[1]), "nobody", 3.0)
except TidemillError as error:
    print(error)
"""
LOGIN = {"sasl.username": USER, "sasl.password": PASSWORD}
MODULE = "org.apache.kafka.common.security.{} required"


def pkcs8(key: Path) -> str:
    """The form of a private key that Java reads."""
    read = serialization.load_pem_private_key(key.read_bytes(), None)
    form = serialization.PrivateFormat.PKCS8
    return read.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


class Secured:
    """A broker with a listener for logins and one for certificates besides its own.

    Attributes:
        settings: of a client in librdkafka's names, by what it shows.
    """

    def __init__(self, own_servers: Callable[..., Servers], folder: Path) -> None:
        self.authority = Authority(folder / "pki")
        self.server = self.authority.issue("server", common_name="broker", names=["localhost"])
        self.client = self.authority.issue("client", common_name=USER)
        ports = Ports(folder / "ports.json")
        self.ports = {"LOGIN": ports.get("login"), "MUTUAL": ports.get("mutual")}
        properties = kafka._properties
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kafka, "_properties", lambda *args, **more: self.added(properties(*args, **more)))
            servers = own_servers(needs=("kafka",))
        change = UserScramCredentialUpsertion(
            USER, ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096), PASSWORD.encode()
        )
        admin = AdminClient({"bootstrap.servers": servers.kafka, "log_level": 0})
        for future in admin.alter_user_scram_credentials([change]).values():
            future.result(30)
        trusting = {"ssl.ca.pem": self.authority.certificate.read_text(), "log_level": 0}
        login = {**trusting, "bootstrap.servers": f"localhost:{self.ports['LOGIN']}", "security.protocol": "sasl_ssl"}
        mutual = {**trusting, "bootstrap.servers": f"localhost:{self.ports['MUTUAL']}", "security.protocol": "ssl"}
        files = {"ssl.certificate.location": str(self.client.certificate), "ssl.key.location": str(self.client.key)}
        texts = {
            "ssl.certificate.pem": self.client.certificate.read_text(),
            "ssl.key.pem": self.client.key.read_text(),
        }
        self.settings: dict[str, dict[str, Any]] = {
            "plain": {**login, **LOGIN, "sasl.mechanism": "PLAIN"},
            "scram": {**login, **LOGIN, "sasl.mechanisms": "SCRAM-SHA-512"},
            "certificate-files": {**mutual, **files},
            "certificate-texts": {**mutual, **texts},
            "wrong-password": {**login, "sasl.mechanism": "PLAIN", "sasl.username": USER, "sasl.password": "wrong"},
            "no-certificate": mutual,
            "unknown-authority": {**login, **LOGIN, "sasl.mechanism": "PLAIN", "ssl.ca.pem": self.other(folder)},
        }

    def other(self, folder: Path) -> str:
        return Authority(folder / "other").certificate.read_text()

    def added(self, properties: Mapping[str, str]) -> dict[str, str]:
        """The broker's properties with both listeners."""
        found = dict(properties)
        for name, port in self.ports.items():
            found["listeners"] += f",{name}://127.0.0.1:{port}"
            found["advertised.listeners"] += f",{name}://localhost:{port}"
        found["listener.security.protocol.map"] += ",LOGIN:SASL_SSL,MUTUAL:SSL"
        text = {
            "ssl.keystore.certificate.chain": self.server.certificate.read_text(),
            "ssl.keystore.key": pkcs8(self.server.key),
            "ssl.truststore.certificates": self.authority.certificate.read_text(),
        }
        at = "listener.name.login"
        plain = f'{MODULE.format("plain.PlainLoginModule")} user_{USER}="{PASSWORD}";'
        return {
            **found,
            **{key: value.replace("\n", "\\n") for key, value in text.items()},
            "ssl.keystore.type": "PEM",
            "ssl.truststore.type": "PEM",
            "listener.name.mutual.ssl.client.auth": "required",
            f"{at}.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
            f"{at}.plain.sasl.jaas.config": plain,
            f"{at}.scram-sha-512.sasl.jaas.config": f"{MODULE.format('scram.ScramLoginModule')};",
        }


@pytest.fixture(scope="module")
def secured(own_servers: Callable[..., Servers], tmp_path_factory: pytest.TempPathFactory) -> Secured:
    return Secured(own_servers, tmp_path_factory.mktemp("secured"))


@pytest.mark.parametrize("shown", ["plain", "scram", "certificate-files", "certificate-texts"])
def test_both_clients_are_let_in(secured: Secured, shown: str) -> None:
    settings = secured.settings[shown]
    topic = Topic(f"secured.{shown}.events", 2, 1, {})
    topics = KafkaTopics(settings["bootstrap.servers"], config=settings)
    assert [made.name for made in topics.ensure([topic])] == [topic.name]
    assert topics.observe([topic.name])[topic.name].partitions == 2

    def described() -> Group | None:
        with contextlib.suppress(TidemillError):  # of a coordinator that is just being made
            return describe_group(settings, "nobody", 10.0)
        return None

    eventually(lambda: described() == Group(0, moving=False), what="a group without members is told")
    with moves(settings, 10.0) as moving:
        assert moving.of(topic.name, [0, 1]) == {}


@pytest.mark.parametrize(
    ("shown", "why"),
    [
        ("wrong-password", r"refuses the client \(.*Invalid username or password"),
        ("unknown-authority", r"refuses the client \(.*certificate verify failed"),
        # The broker hangs up after the handshake, and librdkafka does not tell why.
        ("no-certificate", "does not answer"),
    ],
)
def test_the_operator_tells_why_it_is_not(secured: Secured, shown: str, why: str) -> None:
    settings = secured.settings[shown]
    with pytest.raises(TidemillError, match=f"describing the cluster: Kafka at localhost:[0-9]+ {why}") as told:
        KafkaTopics(settings["bootstrap.servers"], config=settings, timeout_seconds=3.0).brokers()
    assert told.value.reason is Reason.UNREACHABLE
    assert ("client settings for TLS and SASL" in str(told.value)) == ("refuses the client" in str(told.value))
    # In a process of its own: kafka-python leaves sockets that were refused to the garbage collector.
    asked = subprocess.run(
        [sys.executable, "-c", ASKING, json.dumps(settings)], capture_output=True, text=True, timeout=60, check=True
    )
    assert asked.stdout.startswith("describing consumer group nobody: Kafka"), asked.stdout


@pytest.mark.parametrize(("shown", "refusal"), [("scram", ""), ("wrong-password", "Invalid username or password")])
def test_init_reads_a_topic_with_the_same_settings(
    secured: Secured,
    shown: str,
    refusal: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Settings come from the file that TIDEMILL_KAFKA_CONFIG names, as for all other commands and processes."""
    allowed, settings = secured.settings["plain"], dict(secured.settings[shown])
    KafkaTopics(allowed["bootstrap.servers"], config=allowed).ensure([Topic("secured.clicks", 1, 1, {})])
    producer = Producer(allowed)
    producer.produce("secured.clicks", b'{"at": "2026-01-01T00:00:00Z", "plan": "free"}')
    assert producer.flush(30) == 0
    monkeypatch.setenv("TIDEMILL_KAFKA_BROKERS", settings.pop("bootstrap.servers"))
    (tmp_path / "client.json").write_text(json.dumps(settings))
    monkeypatch.setenv("TIDEMILL_KAFKA_CONFIG", str(tmp_path / "client.json"))
    code = main(["init", "--from", "secured.clicks", "--data-dir", str(tmp_path)])
    told = capsys.readouterr()
    assert code == (1 if refusal else 0), told.err
    assert ("name: plan" in told.out) is not bool(refusal)
    assert refusal in told.err
    assert ("TIDEMILL_KAFKA_CONFIG" in told.err) is bool(refusal)
