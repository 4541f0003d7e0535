"""The platform's settings for every pipeline: addresses, defaults of the spec, and limits."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from tidemill_contract import tls
from tidemill_contract.files import read_text
from tidemill_contract.resource.rules import TopicLimits
from tidemill_operator.addresses import PostgresAddress

Runtime = Literal["local", "kubernetes"]
_PATTERN = re.compile(r"[A-Za-z0-9._*-]{1,249}")
STRIMZI_SECRETS = "${secrets:{namespace}/{name}:{key}}"
"""Reference to a Secret's key, for workers whose provider `secrets` is Strimzi's KubernetesSecretConfigProvider."""
_CONNECT_VARIABLES = ("TIDEMILL_CONNECT_URL", "TIDEMILL_CONNECT_STRIMZI", "TIDEMILL_CONNECT_IMAGE")
_STRIMZI = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
WORKER_SECRETS = "${directory:/etc/tidemill/secrets:{file}}"
"""Reference to a Secret's key, for the operator's Connect workers. These workers mount each key as a file."""
NO_POSTGRES = PostgresAddress("", 0, "", "", "")


@dataclass(frozen=True)
class Platform:
    """The platform of one operator, or of one `tidemill up`.

    Attributes:
        cluster_id: id of this cluster. The operator writes the id into objects that outlive their resource.
        redis_ca: PEM file of the authorities for Redis, or empty for the system's authorities.
        topic_prefixes: allowed prefixes of source topics besides `<namespace>.`.
        replication_throttle: bytes per second and broker for moving replicas, or 0 for no limit.
    """

    runtime: Runtime = "local"
    cluster_id: str = "local"
    kafka_brokers: str = ""
    kafka_config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    postgres: PostgresAddress = NO_POSTGRES
    redis_url: str = ""
    redis_ca: str = ""
    partitions: int = 4
    replication_factor: int = 1
    auth_required: bool = False
    topic_prefixes: tuple[str, ...] = ()
    readable_topics: tuple[str, ...] = ()
    ports: Mapping[str, int] = field(default_factory=lambda: {"processor": 0, "ingest": 8080, "api": 8081})
    resilience_file: Path | None = None
    output_retention_ms: int = 7 * 86_400_000
    replication_throttle: int = 50_000_000
    offsets_replication: int = 0
    recreate_topics: bool = False
    connect_url: str = ""
    connect_strimzi: str = ""
    connect_secrets: str = STRIMZI_SECRETS

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Platform:
        """Read the variables of the platform that docs/reference/environment.md lists.

        Raises:
            ValueError: a variable is invalid.
        """
        runtime = environ.get("TIDEMILL_RUNTIME", "local")
        if runtime not in ("local", "kubernetes"):
            raise ValueError(f"TIDEMILL_RUNTIME: {runtime!r} is neither local nor kubernetes")
        in_cluster = runtime == "kubernetes"
        redis_url, redis_ca = environ.get("TIDEMILL_REDIS_URL", ""), environ.get("TIDEMILL_REDIS_CA", "")
        tls.redis_options(redis_url, redis_ca)
        file = environ.get("TIDEMILL_RESILIENCE_FILE")
        _check_single_connect(environ, in_cluster)
        return cls(
            runtime="kubernetes" if in_cluster else "local",
            cluster_id=environ.get("TIDEMILL_CLUSTER_ID", "local"),
            kafka_brokers=environ.get("TIDEMILL_KAFKA_BROKERS", ""),
            kafka_config=json.loads(read_json_text(environ, "TIDEMILL_KAFKA_CONFIG") or "{}"),
            postgres=PostgresAddress.from_env(environ) or NO_POSTGRES,
            redis_url=redis_url,
            redis_ca=tls.ca_path("TIDEMILL_REDIS_CA", redis_ca),
            partitions=read_number(environ, "TIDEMILL_DEFAULT_PARTITIONS", 6 if in_cluster else 4, most=1024),
            replication_factor=read_number(
                environ, "TIDEMILL_DEFAULT_REPLICATION_FACTOR", 3 if in_cluster else 1, most=15
            ),
            auth_required=read_flag(environ, "TIDEMILL_AUTH_REQUIRED", in_cluster),
            topic_prefixes=read_list(environ, "TIDEMILL_TOPIC_PREFIXES"),
            readable_topics=_patterns(environ, "TIDEMILL_READABLE_TOPICS"),
            resilience_file=Path(file) if file else None,
            replication_throttle=read_number(
                environ, "TIDEMILL_REPLICATION_THROTTLE", 50_000_000, least=0, most=10**12
            ),
            recreate_topics=read_flag(environ, "TIDEMILL_RECREATE_TOPICS", False),
            offsets_replication=read_number(environ, "TIDEMILL_OFFSETS_REPLICATION_FACTOR", 0, least=0, most=15),
            connect_url=_connect_url(environ),
            connect_strimzi=_connect_strimzi(environ),
            connect_secrets=WORKER_SECRETS if environ.get("TIDEMILL_CONNECT_IMAGE") else _connect_secrets(environ),
        )

    @property
    def limits(self) -> TopicLimits:
        """Return the allowed names of source topics."""
        return TopicLimits(self.topic_prefixes, self.readable_topics)


def _check_single_connect(environ: Mapping[str, str], in_cluster: bool) -> None:
    variables = [name for name in _CONNECT_VARIABLES if environ.get(name)]
    if len(variables) > 1:
        raise ValueError(f"{' and '.join(variables)}: set only one of them, because a platform has one Kafka Connect")
    if variables and variables[0] != _CONNECT_VARIABLES[0] and not in_cluster:
        raise ValueError(f"{variables[0]}: only for Kubernetes; unset the variable, and tidemill up starts a worker")


def _connect_strimzi(environ: Mapping[str, str]) -> str:
    text = environ.get("TIDEMILL_CONNECT_STRIMZI", "")
    if text and not _STRIMZI.fullmatch(text):
        raise ValueError(
            f"TIDEMILL_CONNECT_STRIMZI: {text!r} does not name a KafkaConnect; write namespace/name, such as"
            " kafka/my-connect"
        )
    return text


def _connect_url(environ: Mapping[str, str]) -> str:
    url = environ.get("TIDEMILL_CONNECT_URL", "").rstrip("/")
    if not url:
        return ""
    try:
        parts = urlsplit(url)
        wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError:
        wrong = True
    if wrong or parts.username is not None or parts.password is not None:
        # Do not show the URL, because it may contain a password.
        raise ValueError("TIDEMILL_CONNECT_URL: write http://host:port or https://host:port, without a login")
    return url


def _connect_secrets(environ: Mapping[str, str]) -> str:
    template = environ.get("TIDEMILL_CONNECT_SECRETS") or STRIMZI_SECRETS
    if not all(placeholder in template for placeholder in ("{namespace}", "{name}", "{key}")):
        # Without {namespace}, a pipeline could read Secrets of other namespaces.
        raise ValueError(
            f"TIDEMILL_CONNECT_SECRETS: {template!r} lacks {{namespace}}, {{name}} or {{key}}; write a reference"
            f" such as {STRIMZI_SECRETS}"
        )
    return template


def read_number(environ: Mapping[str, str], name: str, default: int, *, most: int, least: int = 1) -> int:
    """Read a whole number within limits, or raise ValueError."""
    text = environ.get(name) or str(default)
    if not text.isascii() or not text.isdigit() or not least <= int(text[:15]) <= most:
        raise ValueError(f"{name}: {text!r} is not a whole number from {least} to {most}")
    return int(text)


def read_flag(environ: Mapping[str, str], name: str, default: bool) -> bool:
    """Read `true` or `false`, or raise ValueError."""
    text = environ.get(name) or str(default)
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{name}: {text!r} is neither true nor false")
    return text.lower() == "true"


def read_json_text(environ: Mapping[str, str], name: str) -> str:
    """Return the text of the JSON file named by a variable.

    If the variable is not set, return an empty text.

    Raises:
        ValueError: the file is unreadable or contains no JSON object.
    """
    path = environ.get(name)
    if not path:
        return ""
    try:
        text = read_text(Path(path))
        if not isinstance(json.loads(text), dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        # Do not show the parser's message, because it may quote a password from the file.
        raise ValueError(f"{name}: {path} does not contain a JSON object ({type(error).__name__})") from None
    return text


def _patterns(environ: Mapping[str, str], name: str) -> tuple[str, ...]:
    patterns = read_list(environ, name)
    for pattern in patterns:
        if not _PATTERN.fullmatch(pattern):
            raise ValueError(f"{name}: {pattern!r} is not a topic name; write names, with * for any characters")
    return patterns


def read_list(environ: Mapping[str, str], name: str) -> tuple[str, ...]:
    """Read the items of a comma-separated variable."""
    return tuple(item.strip() for item in environ.get(name, "").split(",") if item.strip())
