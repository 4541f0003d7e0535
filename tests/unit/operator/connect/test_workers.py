"""Tests of the configuration of the operator's Connect workers: properties, topics, logins and files of secrets."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill_contract.resource.kinds.connectors import SecretKeyRef
from tidemill_operator.cluster_settings import ClusterSettings, ConnectWorkers
from tidemill_operator.errors import TidemillError
from tidemill_operator.plan.connect import workers
from tidemill_operator.plan.connect.connectors import secret_file, secret_placeholder
from tidemill_operator.settings import WORKER_SECRETS, Platform

PLATFORM = Platform(runtime="kubernetes", cluster_id="west", kafka_brokers="kafka:9093", replication_factor=3)
CLUSTER = {
    "TIDEMILL_RUNTIME": "kubernetes",
    "TIDEMILL_POD_NAME": "o-1",
    "TIDEMILL_OPERATOR_NAMESPACE": "tidemill-system",
    **{f"TIDEMILL_IMAGE_{part}": "x:1" for part in ("INGEST", "PROCESSOR", "API")},
    "TIDEMILL_CONNECT_IMAGE": "connect:1",
}


def parsed(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines())


def test_each_namespace_has_another_group_and_other_topics() -> None:
    """The topics that the operator creates fit the properties of the workers."""
    worker_properties = parsed(workers.properties("shop", PLATFORM, {}))
    assert worker_properties["group.id"] == "shop.tidemill-connect-west"
    assert worker_properties["rest.advertised.host.name"] == "${env:POD_IP}"
    topics = {topic.name: topic for topic in workers.topics("shop", PLATFORM)}
    for setting, partitions in (("config", 1), ("offset", 25), ("status", 5)):
        topic = topics.pop(worker_properties[f"{setting}.storage.topic"])
        assert (topic.partitions, topic.replication_factor) == (partitions, 3)
        assert topic.config == {"cleanup.policy": "compact"}
        assert worker_properties.get(f"{setting}.storage.partitions", "1") == str(partitions)
    assert topics == {}


def test_a_login_is_translated_for_each_client_of_the_worker() -> None:
    """Quotes, line breaks and letters outside ASCII are escaped for Java."""
    client = {
        "security.protocol": "sasl_ssl",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "shop",
        "sasl.password": 'a"b\\c é',
        "ssl.ca.pem": "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n",
        "linger.ms": 5,
    }
    assert workers.java_client(client) == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required"
        ' username="shop" password="a\\"b\\\\c é";',
        "ssl.truststore.type": "PEM",
        "ssl.truststore.certificates": client["ssl.ca.pem"],
    }
    worker_properties = parsed(workers.properties("shop", PLATFORM, client))
    for prefix in ("", "producer.", "consumer.", "admin."):
        assert worker_properties[f"{prefix}sasl.jaas.config"].endswith('password="a\\\\"b\\\\\\\\c \\u00e9";')
        assert worker_properties[f"{prefix}ssl.truststore.certificates"].count("\\n") == 3


@pytest.mark.parametrize(
    ("client", "message"),
    [
        (
            {"ssl.ca.location": "/ca.crt"},
            "ssl.ca.location cannot be translated for Kafka Connect: use settings such as ssl.ca.pem",
        ),
        ({"security.protocol": "SASL_SSL", "sasl.mechanism": "OAUTHBEARER"}, "'OAUTHBEARER' is none of PLAIN"),
    ],
)
def test_a_login_that_java_cannot_use_is_refused(client: dict[str, Any], message: str) -> None:
    with pytest.raises(TidemillError) as raised:
        workers.java_client(client)
    assert message in str(raised.value)
    assert "set connect.url" in str(raised.value)


def test_a_reference_names_the_file_of_a_secret_of_the_pipeline() -> None:
    """Two pipelines of a namespace never read the same file."""
    secret = SecretKeyRef(name="shop-db", key="password")
    placeholder = secret_placeholder(WORKER_SECRETS, "shop", "orders", secret)
    assert placeholder == "${directory:/etc/tidemill/secrets:" + secret_file("orders", "shop-db", "password") + "}"
    assert placeholder != secret_placeholder(WORKER_SECRETS, "shop", "returns", secret)
    assert len(secret_file("o" * 40, "s" * 253, "k" * 253)) <= 253


def test_settings_of_workers_are_read_from_the_environment() -> None:
    environ = {
        **CLUSTER,
        "TIDEMILL_CONNECT_REPLICAS": "3",
        "TIDEMILL_CONNECT_MEMORY": "2Gi",
        "TIDEMILL_CONNECT_EGRESS_PORTS": "5432,3306",
    }
    platform = Platform.from_env(environ)
    assert platform.connect_secrets == WORKER_SECRETS
    expected = ConnectWorkers("connect:1", 3, "2Gi", (5432, 3306), "tidemill-system")
    assert ClusterSettings.from_env(platform, environ).placement.connect == expected
    without = {name: value for name, value in environ.items() if name != "TIDEMILL_CONNECT_IMAGE"}
    assert ClusterSettings.from_env(platform, without).placement.connect is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("REPLICAS", "0", "'0' is not a whole number from 1 to 100"),
        ("MEMORY", "lots", "'lots' is not an amount of memory; write one such as 1Gi"),
        ("EGRESS_PORTS", "db", "'db' is not a whole number from 1 to 65535"),
    ],
)
def test_a_wrong_setting_names_its_variable(name: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"TIDEMILL_CONNECT_{name}: ") as raised:
        ClusterSettings.from_env(Platform(), {**CLUSTER, f"TIDEMILL_CONNECT_{name}": value})
    assert message in str(raised.value)
