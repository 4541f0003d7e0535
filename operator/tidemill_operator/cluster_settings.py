"""The operator's settings in a cluster."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from tidemill_contract.files import read_text
from tidemill_operator.settings import Platform, read_flag, read_json_text, read_list, read_number

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_PULL_POLICIES = ("IfNotPresent", "Always", "Never")
_COMPONENTS = ("processor", "ingest", "api")
_DNS_PORT, _REDIS_PORT = 53, 6379
_REDIS_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_INGEST_LIMITS = (
    "TIDEMILL_INGEST_EVENTS_PER_SECOND",
    "TIDEMILL_INGEST_BYTES_PER_SECOND",
    "TIDEMILL_INGEST_IN_FLIGHT_BYTES",
)
_API_LIMITS = ("TIDEMILL_API_KEYLESS_CONNECTIONS", "TIDEMILL_API_KEYLESS_PER_ADDRESS")
_HOSTS, _CONNECTIONS = "TIDEMILL_ALLOWED_HOSTS", "TIDEMILL_HTTP_CONNECTIONS"
_MAX_AMOUNT = 10**12
_MEMORY = re.compile(r"[1-9][0-9]{0,12}(k|M|G|Ki|Mi|Gi)?")
_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")


@dataclass(frozen=True)
class Exposure:
    """The settings of every Ingress. Each host has the form `<pipeline>-<ingest or api>.<namespace>.<domain>`."""

    domain: str
    class_name: str = ""
    tls_secret: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ConnectWorkers:
    """The settings of the Connect workers in each namespace.

    Attributes:
        caller_namespace: the namespace that may call the workers, i.e. the operator's namespace.
    """

    image: str
    replicas: int = 1
    memory: str = "1Gi"
    egress_ports: tuple[int, ...] = ()
    caller_namespace: str = ""


@dataclass(frozen=True)
class Placement:
    """The settings of every workload in a cluster.

    Attributes:
        connections: the servers' addresses in a Secret, by file name such as `redis-url`.
    """

    images: Mapping[str, str]
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    ingest: Mapping[str, str] = field(default_factory=dict)
    api: Mapping[str, str] = field(default_factory=dict)
    http_environment: Mapping[str, str] = field(default_factory=dict)
    connections: Mapping[str, str] = field(default_factory=dict, repr=False)
    resilience: str = ""
    egress_ports: tuple[int, ...] = ()
    network_policies: bool = True
    exposure: Exposure | None = None
    connect: ConnectWorkers | None = None


@dataclass(frozen=True)
class ClusterSettings:
    """The settings of one operator in a cluster. An empty `namespaces` means all namespaces."""

    namespaces: tuple[str, ...]
    operator_namespace: str
    pod_name: str
    placement: Placement
    webhook_port: int = 9443
    webhook_service: str = "tidemill-webhook"
    webhook_configuration: str = "tidemill"
    webhook_secret: str = "tidemill-webhook"  # noqa: S105 - the name of a Secret, not a password
    status_port: int = 8082
    lease_name: str = "tidemill-operator"
    drift_seconds: float = 90.0
    log_level: str = "INFO"
    shared_kafka_login: bool = False

    @classmethod
    def from_env(cls, platform: Platform, environ: Mapping[str, str] = os.environ) -> ClusterSettings:
        """Read the variables that docs/reference/environment.md lists.

        Raises:
            ValueError: a variable is invalid or missing.
        """
        pod = environ.get("TIDEMILL_POD_NAME") or environ.get("HOSTNAME", "")
        if not pod:
            raise ValueError("TIDEMILL_POD_NAME: set it to the pod's own name (fieldRef metadata.name)")
        kafka = read_json_text(environ, "TIDEMILL_KAFKA_CONFIG")
        return cls(
            namespaces=read_list(environ, "TIDEMILL_WATCH_NAMESPACES"),
            operator_namespace=_required(environ, "TIDEMILL_OPERATOR_NAMESPACE"),
            pod_name=pod,
            placement=_placement(platform, environ),
            webhook_port=read_number(environ, "TIDEMILL_WEBHOOK_PORT", cls.webhook_port, least=0, most=65_535),
            webhook_service=environ.get("TIDEMILL_WEBHOOK_SERVICE") or cls.webhook_service,
            webhook_configuration=environ.get("TIDEMILL_WEBHOOK_CONFIGURATION") or cls.webhook_configuration,
            webhook_secret=environ.get("TIDEMILL_WEBHOOK_SECRET") or cls.webhook_secret,
            status_port=read_number(environ, "TIDEMILL_STATUS_PORT", cls.status_port, least=0, most=65_535),
            lease_name=environ.get("TIDEMILL_LEASE_NAME") or cls.lease_name,
            drift_seconds=float(read_number(environ, "TIDEMILL_DRIFT_SECONDS", int(cls.drift_seconds), most=86_400)),
            log_level=_choice(environ, "TIDEMILL_LOG_LEVEL", cls.log_level, _LEVELS),
            shared_kafka_login=bool(kafka)
            and (read_json_text(environ, "TIDEMILL_WORKLOAD_KAFKA_CONFIG") or kafka) == kafka,
        )

    def warnings(self) -> list[str]:
        """Return warnings about unsafe settings."""
        if not self.shared_kafka_login:
            return []
        return [
            "TIDEMILL_WORKLOAD_KAFKA_CONFIG: pods of pipelines get the operator's own Kafka login. Every reader"
            " of Secrets in the pipelines' namespaces can use this login. Give pods a login without permission to"
            " create, alter or delete topics (in the chart: kafka.workloadKey)"
        ]


def _placement(platform: Platform, environ: Mapping[str, str]) -> Placement:
    postgres = platform.postgres
    connections = {
        "redis-url": platform.redis_url,
        "kafka.json": read_json_text(environ, "TIDEMILL_WORKLOAD_KAFKA_CONFIG")
        or read_json_text(environ, "TIDEMILL_KAFKA_CONFIG"),
        "postgres-ca.crt": _certificates("TIDEMILL_POSTGRES_CA", postgres.sslrootcert),
        "redis-ca.crt": _certificates("TIDEMILL_REDIS_CA", _redis_authority(platform)),
    }
    resilience = platform.resilience_file
    return Placement(
        images={part: _required(environ, f"TIDEMILL_IMAGE_{part.upper()}") for part in _COMPONENTS},
        pull_policy=_choice(environ, "TIDEMILL_IMAGE_PULL_POLICY", "IfNotPresent", _PULL_POLICIES),
        pull_secrets=read_list(environ, "TIDEMILL_IMAGE_PULL_SECRETS"),
        environment={
            "TIDEMILL_KAFKA_BROKERS": platform.kafka_brokers,
            "TIDEMILL_POSTGRES_HOST": postgres.host,
            "TIDEMILL_POSTGRES_PORT": str(postgres.port),
            "TIDEMILL_POSTGRES_DATABASE": postgres.database,
            "TIDEMILL_POSTGRES_SSLMODE": postgres.sslmode,
            "TIDEMILL_LOG_LEVEL": _choice(environ, "TIDEMILL_LOG_LEVEL", "INFO", _LEVELS),
        },
        ingest={name: _checked_number(environ, name) for name in _INGEST_LIMITS if environ.get(name)},
        api={name: _checked_number(environ, name) for name in _API_LIMITS if environ.get(name)},
        http_environment={
            **({_HOSTS: environ[_HOSTS]} if environ.get(_HOSTS) else {}),
            **({_CONNECTIONS: _checked_number(environ, _CONNECTIONS, least=1)} if environ.get(_CONNECTIONS) else {}),
        },
        connections={name: text for name, text in connections.items() if text},
        resilience=read_text(resilience) if resilience else "",
        egress_ports=_egress_ports(platform, environ),
        network_policies=read_flag(environ, "TIDEMILL_NETWORK_POLICIES", True),
        exposure=_exposure(environ),
        connect=_connect(environ),
    )


def _connect(environ: Mapping[str, str]) -> ConnectWorkers | None:
    image = environ.get("TIDEMILL_CONNECT_IMAGE", "")
    if not image:
        return None
    memory = environ.get("TIDEMILL_CONNECT_MEMORY") or ConnectWorkers.memory
    if not _MEMORY.fullmatch(memory):
        raise ValueError(f"TIDEMILL_CONNECT_MEMORY: {memory!r} is not an amount of memory; write one such as 1Gi")
    return ConnectWorkers(
        image,
        replicas=read_number(environ, "TIDEMILL_CONNECT_REPLICAS", ConnectWorkers.replicas, most=100),
        memory=memory,
        egress_ports=_port_numbers(environ, "TIDEMILL_CONNECT_EGRESS_PORTS"),
        caller_namespace=environ.get("TIDEMILL_OPERATOR_NAMESPACE", ""),
    )


def _port_numbers(environ: Mapping[str, str], name: str) -> tuple[int, ...]:
    return tuple(read_number({name: text}, name, _DNS_PORT, most=65_535) for text in read_list(environ, name))


def _checked_number(environ: Mapping[str, str], name: str, *, least: int = 0) -> str:
    read_number(environ, name, least, least=least, most=_MAX_AMOUNT)
    return environ[name]


def _exposure(environ: Mapping[str, str]) -> Exposure | None:
    domain = environ.get("TIDEMILL_INGRESS_DOMAIN", "").strip(".").lower()
    if not domain:
        return None
    if not _DOMAIN.fullmatch(domain):
        raise ValueError(f"TIDEMILL_INGRESS_DOMAIN: {domain!r} is not a DNS domain; write one such as example.com")
    try:
        members = json.loads(environ.get("TIDEMILL_INGRESS_ANNOTATIONS") or "{}")
        annotations = {str(name): str(value) for name, value in members.items()}
    except (ValueError, AttributeError):
        raise ValueError('TIDEMILL_INGRESS_ANNOTATIONS: write a JSON object, such as {"name": "value"}') from None
    return Exposure(
        domain,
        class_name=environ.get("TIDEMILL_INGRESS_CLASS", ""),
        tls_secret=environ.get("TIDEMILL_INGRESS_TLS_SECRET", ""),
        annotations=annotations,
    )


def _egress_ports(platform: Platform, environ: Mapping[str, str]) -> tuple[int, ...]:
    brokers = [int(broker.rpartition(":")[2]) for broker in platform.kafka_brokers.split(",") if ":" in broker]
    redis = [urlsplit(platform.redis_url).port or _REDIS_PORT] if platform.redis_url else []
    extra = _port_numbers(environ, "TIDEMILL_EGRESS_PORTS")
    return tuple(sorted({*brokers, *redis, *extra, *([platform.postgres.port] if platform.postgres.port else [])}))


def _redis_authority(platform: Platform) -> str:
    for name, value in parse_qsl(urlsplit(platform.redis_url).query):
        if name in _REDIS_FILES:
            raise ValueError(
                f"TIDEMILL_REDIS_URL: {name}={value} names a file missing in pipelines' pods; remove"
                " the parameter, and name the authority's file in TIDEMILL_REDIS_CA (chart: redis.caSecret)"
            )
    return platform.redis_ca


def _certificates(variable: str, path: str) -> str:
    text = read_text(Path(path)) if path else ""
    if path and "-----BEGIN CERTIFICATE-----" not in text:
        raise ValueError(f"{variable}: {path} contains no certificate in PEM form (-----BEGIN CERTIFICATE-----)")
    return text


def _required(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "")
    if not value:
        raise ValueError(f"{name}: is not set, and the operator cannot run without it")
    return value


def _choice(environ: Mapping[str, str], name: str, default: str, choices: tuple[str, ...]) -> str:
    value = environ.get(name) or default
    if value not in choices:
        raise ValueError(f"{name}: {value!r} is not one of {', '.join(choices)}")
    return value
