"""A Kafka broker with a listener for SASL logins and a listener for client certificates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import (
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography.hazmat.primitives import serialization

from kube.pki import Authority
from tidemill_operator.laptop.servers import Servers, kafka
from tidemill_operator.processes.ports import Ports

USER, PASSWORD = "tidemill", "not secret"
LOGIN = {"sasl.username": USER, "sasl.password": PASSWORD}
MODULE = "org.apache.kafka.common.security.{} required"


def pkcs8(key: Path) -> str:
    """Return a private key in PKCS #8, the form that Java reads."""
    read = serialization.load_pem_private_key(key.read_bytes(), None)
    form = serialization.PrivateFormat.PKCS8
    return read.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


class Secured:
    """A broker with two more listeners: one for SASL logins, and one for client certificates.

    Attributes:
        servers: the broker.
        settings: settings of a client for librdkafka, by the name of the case, such as `wrong-password`.
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
            self.servers = own_servers(needs=("kafka",))
        self.add_user(USER, PASSWORD)
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

    def add_user(self, name: str, password: str) -> None:
        """Add a user with a SCRAM-SHA-512 password."""
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        admin = AdminClient({"bootstrap.servers": self.servers.kafka, "log_level": 0})
        change = UserScramCredentialUpsertion(name, info, password.encode())
        for future in admin.alter_user_scram_credentials([change]).values():
            future.result(30)

    def other(self, folder: Path) -> str:
        """Return the certificate of an authority that did not issue the broker's certificate."""
        return Authority(folder / "other").certificate.read_text()

    def added(self, properties: Mapping[str, str]) -> dict[str, str]:
        """Return the broker's properties with both listeners added."""
        extended = dict(properties)
        for name, port in self.ports.items():
            extended["listeners"] += f",{name}://127.0.0.1:{port}"
            extended["advertised.listeners"] += f",{name}://localhost:{port}"
        extended["listener.security.protocol.map"] += ",LOGIN:SASL_SSL,MUTUAL:SSL"
        text = {
            "ssl.keystore.certificate.chain": self.server.certificate.read_text(),
            "ssl.keystore.key": pkcs8(self.server.key),
            "ssl.truststore.certificates": self.authority.certificate.read_text(),
        }
        at = "listener.name.login"
        plain = f'{MODULE.format("plain.PlainLoginModule")} user_{USER}="{PASSWORD}";'
        return {
            **extended,
            **{key: value.replace("\n", "\\n") for key, value in text.items()},
            "ssl.keystore.type": "PEM",
            "ssl.truststore.type": "PEM",
            "listener.name.mutual.ssl.client.auth": "required",
            f"{at}.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
            f"{at}.plain.sasl.jaas.config": plain,
            f"{at}.scram-sha-512.sasl.jaas.config": f"{MODULE.format('scram.ScramLoginModule')};",
        }
