"""Derive names from a pipeline: topics, schema, roles, consumer groups, services and Redis keys.

Two pipelines never share a derived name.
"""

from __future__ import annotations

import hashlib

POSTGRES_MAX = 63
_ROLE_SUFFIX_MAX = len("_writer_a")
SCHEMA_MAX = POSTGRES_MAX - _ROLE_SUFFIX_MAX
KAFKA_MAX = 249
SERVICE_MAX = 63
OUTPUT_TOPICS = ("results", "anomalies", "dead-letters", "stage")


CONNECT_WORKERS = "tidemill-connect"
"""The name of the Kafka Connect workers that the operator runs in a namespace."""
CONNECT_TOPICS = ("configs", "offsets", "statuses")
"""The suffixes of the internal topics of Kafka Connect workers."""


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:10]


def schema(namespace: str, name: str) -> str:
    """Return the name of the Postgres schema, which is `<namespace>__<name>` with hyphens as underscores.

    A hash is added to names that would be ambiguous, too long or reserved by Postgres.
    """
    plain = f"{namespace}__{name}".replace("-", "_")
    if plain[0].isdigit() or plain.startswith("pg_"):
        plain = f"t_{plain}"
    elif len(plain) <= SCHEMA_MAX and "--" not in namespace + "/" + name:
        return plain
    return f"{plain[: SCHEMA_MAX - 13].rstrip('_')}___{_digest(namespace, name)}"


def role(schema_name: str, function: str) -> str:
    """Return the name of a schema's Postgres role. `function` is `owner`, `writer` or `reader`."""
    return f"{schema_name}_{function}"


def login_roles(role_name: str) -> tuple[str, str]:
    """Return the names of the two login roles that are members of `role_name`.

    One login role is in use, and the other gets the next password.
    """
    return f"{role_name}_a", f"{role_name}_b"


def topic(namespace: str, name: str, kind: str) -> str:
    """Return the name of a pipeline's topic for a kind (events, or a value of `OUTPUT_TOPICS`)."""
    return f"{namespace}.{name}.{kind}"


def parse_topic(topic_name: str) -> tuple[str, str, str] | None:
    """Return the namespace, pipeline and kind of a derived topic name. If the name is not derived, return None."""
    # Names of namespaces and pipelines have no dots. So a topic name can be split at the dots.
    parts = topic_name.split(".")
    if len(parts) != 3 or not all(parts) or parts[2] not in ("events", *OUTPUT_TOPICS):
        return None
    return parts[0], parts[1], parts[2]


def connect_group_id(namespace: str, cluster_id: str) -> str:
    """Return the group id of a namespace's Kafka Connect workers. The workers' topics have this id as prefix."""
    return f"{namespace}.{CONNECT_WORKERS}-{cluster_id}"


def is_connect_topic(topic_name: str) -> bool:
    """Return whether a topic has the name of an internal topic of Tidemill's Kafka Connect workers."""
    name = topic_name.rpartition(".")[2]
    return name.startswith(f"{CONNECT_WORKERS}-") and name.endswith(tuple(f"-{kind}" for kind in CONNECT_TOPICS))


def consumer_group(namespace: str, name: str, reader: str = "live") -> str:
    """Return the consumer group of a pipeline's reader. Examples of readers are `live`, `stage` and a replay's name."""
    suffix = "" if reader == "live" else f".{reader}"
    return f"tidemill.{namespace}.{name}{suffix}"


def connector_prefix(namespace: str, name: str) -> str:
    """Return the prefix of the names of a pipeline's connectors."""
    return f"{namespace}.{name}."


def connector(namespace: str, name: str, connector_name: str) -> str:
    """Return the name of a pipeline's connector in Kafka Connect."""
    return f"{connector_prefix(namespace, name)}{connector_name}"


def window_table(aggregation: str, version: int) -> str:
    """Return the name of the window table for a version of an aggregation."""
    return f"{aggregation}_v{version}"


def service(name: str, component: str) -> str:
    """Return the name of a pipeline's Kubernetes Service for a component (ingest or api)."""
    return f"{name}-{component}"


def redis_prefix(namespace: str, name: str) -> str:
    """Return the prefix of all Redis keys of a pipeline."""
    return f"tidemill/{namespace}/{name}"


def live_stream(namespace: str, name: str) -> str:
    """Return the Redis key of the stream with a pipeline's live changes."""
    return f"{redis_prefix(namespace, name)}/live"


def live_listeners(namespace: str, name: str) -> str:
    """Return the Redis key that exists while a client listens to a pipeline's live changes."""
    return f"{redis_prefix(namespace, name)}/listeners"


def idempotency_prefix(namespace: str, name: str) -> str:
    """Return the prefix of the Redis keys for a pipeline's requests with an Idempotency-Key."""
    return f"{redis_prefix(namespace, name)}/batches"


def ingest_process_key(namespace: str, process: str) -> str:
    """Return the Redis key that exists while an ingest process runs."""
    return f"tidemill/{namespace}/~ingest/{process}"
