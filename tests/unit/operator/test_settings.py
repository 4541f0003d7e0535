"""Tests of the settings of the platform from the environment: defaults, and errors that name the variable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.cluster_settings import ClusterSettings
from tidemill_operator.settings import Platform


def test_an_empty_environment_is_the_local_platform() -> None:
    assert Platform.from_env({}) == Platform()


def test_a_cluster_has_stricter_defaults() -> None:
    """Topics are replicated, and API keys are required."""
    platform = Platform.from_env({"TIDEMILL_RUNTIME": "kubernetes"})
    assert (platform.partitions, platform.replication_factor, platform.auth_required) == (6, 3, True)


READ: list[tuple[str, str, str, Any]] = [
    ("TIDEMILL_CLUSTER_ID", "west", "cluster_id", "west"),
    ("TIDEMILL_KAFKA_BROKERS", "a:1,b:1", "kafka_brokers", "a:1,b:1"),
    ("TIDEMILL_REDIS_URL", "redis://r/0", "redis_url", "redis://r/0"),
    ("TIDEMILL_DEFAULT_PARTITIONS", "12", "partitions", 12),
    ("TIDEMILL_DEFAULT_REPLICATION_FACTOR", "2", "replication_factor", 2),
    ("TIDEMILL_AUTH_REQUIRED", "True", "auth_required", True),
    ("TIDEMILL_TOPIC_PREFIXES", " bank., legacy. ,", "topic_prefixes", ("bank.", "legacy.")),
    ("TIDEMILL_READABLE_TOPICS", "crm.*, orders", "readable_topics", ("crm.*", "orders")),
    ("TIDEMILL_RESILIENCE_FILE", "/etc/r.yaml", "resilience_file", Path("/etc/r.yaml")),
    ("TIDEMILL_DEFAULT_PARTITIONS", "", "partitions", 4),
    ("TIDEMILL_REPLICATION_THROTTLE", "0", "replication_throttle", 0),
    ("TIDEMILL_OFFSETS_REPLICATION_FACTOR", "3", "offsets_replication", 3),
    ("TIDEMILL_RECREATE_TOPICS", "true", "recreate_topics", True),
    ("TIDEMILL_CONNECT_URL", "https://connect:8083/", "connect_url", "https://connect:8083"),
    (
        "TIDEMILL_CONNECT_SECRETS",
        "${d:/s/{namespace}/{name}:{key}}",
        "connect_secrets",
        "${d:/s/{namespace}/{name}:{key}}",
    ),
]


@pytest.mark.parametrize(("name", "value", "member", "expected"), READ)
def test_each_variable_sets_one_member_and_an_empty_one_sets_none(
    name: str, value: str, member: str, expected: Any
) -> None:
    assert getattr(Platform.from_env({name: value}), member) == expected


def test_settings_of_kafkas_client_are_in_a_file_and_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "client.json"
    file.write_text('{"sasl.password": "hidden"}')
    platform = Platform.from_env({"TIDEMILL_KAFKA_CONFIG": str(file)})
    assert platform.kafka_config == {"sasl.password": "hidden"}
    assert "hidden" not in repr(platform)
    file.write_text('["hidden"]')
    with pytest.raises(ValueError, match=r"TIDEMILL_KAFKA_CONFIG: .*\.json does not contain a JSON object") as refused:
        Platform.from_env({"TIDEMILL_KAFKA_CONFIG": str(file)})
    assert "hidden" not in str(refused.value)


WRONG: list[tuple[str, str, str]] = [
    ("TIDEMILL_READABLE_TOPICS", "crm.*,a/b", "'a/b' is not a topic name; write names, with * for any characters"),
    ("TIDEMILL_CONNECT_STRIMZI", "kafka/my-connect", "only for Kubernetes; unset the variable"),
    ("TIDEMILL_CONNECT_URL", "connect:8083", "write http://host:port or https://host:port"),
    ("TIDEMILL_CONNECT_URL", "http://me:secret@connect:8083", "without a login"),
    ("TIDEMILL_CONNECT_SECRETS", "${secrets:{name}:{key}}", "lacks {namespace}"),
    ("TIDEMILL_KAFKA_CONFIG", "/none.json", "/none.json does not contain a JSON object"),
    ("TIDEMILL_RUNTIME", "docker", "'docker' is neither local nor kubernetes"),
    ("TIDEMILL_DEFAULT_PARTITIONS", "many", "'many' is not a whole number from 1 to 1024"),
    ("TIDEMILL_DEFAULT_PARTITIONS", "0", "'0' is not a whole number from 1 to 1024"),
    ("TIDEMILL_DEFAULT_PARTITIONS", "1025", "'1025' is not a whole number from 1 to 1024"),
    ("TIDEMILL_DEFAULT_PARTITIONS", "٣", "'٣' is not a whole number from 1 to 1024"),
    ("TIDEMILL_DEFAULT_REPLICATION_FACTOR", "16", "'16' is not a whole number from 1 to 15"),
    ("TIDEMILL_AUTH_REQUIRED", "yes", "'yes' is neither true nor false"),
    ("TIDEMILL_POSTGRES_URL", "mysql://me@db/x", "write it as postgresql://USER:PASSWORD@HOST:PORT/DATABASE"),
    ("TIDEMILL_POSTGRES_URL", "postgresql://db/x", "write it as postgresql://USER:PASSWORD@HOST:PORT/DATABASE"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG, ids=[f"{row[0]}={row[1]}" for row in WRONG])
def test_a_wrong_value_names_its_variable(name: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=name) as raised:
        Platform.from_env({name: value})
    assert message in str(raised.value)


def test_a_platform_has_one_kafka_connect() -> None:
    cluster = {"TIDEMILL_RUNTIME": "kubernetes", "TIDEMILL_CONNECT_STRIMZI": "kafka/my-connect"}
    assert Platform.from_env(cluster).connect_strimzi == "kafka/my-connect"
    with pytest.raises(ValueError, match="TIDEMILL_CONNECT_URL and TIDEMILL_CONNECT_STRIMZI: set only one of them"):
        Platform.from_env({**cluster, "TIDEMILL_CONNECT_URL": "http://connect:8083"})
    with pytest.raises(ValueError, match="my-connect' does not name a KafkaConnect"):
        Platform.from_env({**cluster, "TIDEMILL_CONNECT_STRIMZI": "my-connect"})


CLUSTER = {
    "TIDEMILL_POD_NAME": "o-1",
    "TIDEMILL_OPERATOR_NAMESPACE": "tidemill-system",
    **{f"TIDEMILL_IMAGE_{part}": "x:1" for part in ("INGEST", "PROCESSOR", "API")},
}


def test_the_limits_of_ingest_are_passed_to_its_pods() -> None:
    """Without a variable, the default of the workload applies."""
    limits = {"TIDEMILL_INGEST_EVENTS_PER_SECOND": "0", "TIDEMILL_INGEST_IN_FLIGHT_BYTES": "1048576"}
    assert ClusterSettings.from_env(Platform(), {**CLUSTER, **limits}).placement.ingest == limits
    assert ClusterSettings.from_env(Platform(), CLUSTER).placement.ingest == {}
    with pytest.raises(ValueError, match="TIDEMILL_INGEST_BYTES_PER_SECOND: '-1' is not a whole number"):
        ClusterSettings.from_env(Platform(), {**CLUSTER, "TIDEMILL_INGEST_BYTES_PER_SECOND": "-1"})


def test_hosts_and_limits_of_clients_are_passed_to_pods() -> None:
    limits = {"TIDEMILL_API_KEYLESS_CONNECTIONS": "5", "TIDEMILL_API_KEYLESS_PER_ADDRESS": "2"}
    called = {"TIDEMILL_ALLOWED_HOSTS": "api.example.com,*.example.org", "TIDEMILL_HTTP_CONNECTIONS": "700"}
    placement = ClusterSettings.from_env(Platform(), {**CLUSTER, **limits, **called}).placement
    assert (placement.api, placement.http_environment) == (limits, called)
    with pytest.raises(ValueError, match="TIDEMILL_HTTP_CONNECTIONS: '0' is not a whole number from 1"):
        ClusterSettings.from_env(Platform(), {**CLUSTER, "TIDEMILL_HTTP_CONNECTIONS": "0"})
    with pytest.raises(ValueError, match="TIDEMILL_API_KEYLESS_CONNECTIONS: 'x' is not a whole number"):
        ClusterSettings.from_env(Platform(), {**CLUSTER, "TIDEMILL_API_KEYLESS_CONNECTIONS": "x"})


URLS: list[tuple[str, PostgresAddress, str]] = [
    ("postgresql://me:pw@db:6000/x", PostgresAddress("db", 6000, "x", "me", "pw"), "all parts"),
    ("postgres://me@db", PostgresAddress("db", 5432, "postgres", "me", ""), "missing parts have defaults"),
    (
        "postgresql://m%40e:p%2Fw@db/a%20b?sslmode=require",
        PostgresAddress("db", 5432, "a b", "m@e", "p/w", "require"),
        "escaped characters",
    ),
]


@pytest.mark.parametrize(("url", "address", "why"), URLS, ids=[row[2] for row in URLS])
def test_a_postgres_url_is_read(url: str, address: PostgresAddress, why: str) -> None:
    """The URL of an address gives the same address. The password is neither in repr nor in the public URL."""
    assert Platform.from_env({"TIDEMILL_POSTGRES_URL": url}).postgres == address, why
    assert PostgresAddress.from_url(address.url) == address
    if address.password:
        assert address.password not in repr(address) + address.public_url


def test_pods_with_the_kafka_login_of_the_operator_cause_a_warning(tmp_path: Path) -> None:
    """The warning is for pods without another login, or with the same login."""
    login, other = tmp_path / "client.json", tmp_path / "workload.json"
    login.write_text('{"sasl.username": "tidemill"}')
    other.write_text('{"sasl.username": "pipelines"}')

    def warned(**files: Path) -> list[str]:
        named = {f"TIDEMILL_{name}": str(path) for name, path in files.items()}
        return ClusterSettings.from_env(Platform(), {**CLUSTER, **named}).warnings()

    assert warned() == warned(KAFKA_CONFIG=login, WORKLOAD_KAFKA_CONFIG=other) == []
    (warning,) = warned(KAFKA_CONFIG=login)
    assert "kafka.workloadKey" in warning
    assert warned(KAFKA_CONFIG=login, WORKLOAD_KAFKA_CONFIG=login) == [warning]
