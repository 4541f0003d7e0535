"""Every name derived from a pipeline: topics, schema, roles, consumer groups, services, Redis keys.

A derived name is injective (two pipelines never share one) and never longer than its system allows; what would be
ambiguous or too long carries a hash.
"""

from __future__ import annotations

import hashlib

POSTGRES_MAX = 63
_ROLE_SUFFIX_MAX = len("_writer_a")
SCHEMA_MAX = POSTGRES_MAX - _ROLE_SUFFIX_MAX
KAFKA_MAX = 249
SERVICE_MAX = 63
OUTPUT_TOPICS = ("results", "anomalies", "dead-letters")


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:10]


def schema(namespace: str, name: str) -> str:
    """The Postgres schema: `<namespace>__<name>` with hyphens as underscores.

    `--` in either part could be read two ways, so such names, and long ones, end in `___<hash>`; a plain one never
    holds three underscores in a row. A schema never starts with a digit or `pg_`: those are hashed as well, and
    prefixed.
    """
    plain = f"{namespace}__{name}".replace("-", "_")
    if plain[0].isdigit() or plain.startswith("pg_"):
        plain = f"t_{plain}"
    elif len(plain) <= SCHEMA_MAX and "--" not in namespace + "/" + name:
        return plain
    return f"{plain[: SCHEMA_MAX - 13].rstrip('_')}___{_digest(namespace, name)}"


def role(schema_name: str, function: str) -> str:
    """A Postgres role of a schema; function is owner, writer or reader."""
    return f"{schema_name}_{function}"


def logins(role_name: str) -> tuple[str, str]:
    """The two login roles that have a role's rights: one is in force, the other is for the next password."""
    return f"{role_name}_a", f"{role_name}_b"


def topic(namespace: str, name: str, kind: str) -> str:
    """A topic of a pipeline; kind is events, results, anomalies or dead-letters."""
    return f"{namespace}.{name}.{kind}"


def derived_topic(topic_name: str) -> tuple[str, str, str] | None:
    """Namespace, pipeline and kind of a topic that has the name of a pipeline's; None: it has not.

    Neither a namespace nor a pipeline's name holds a dot.
    """
    parts = topic_name.split(".")
    if len(parts) != 3 or not all(parts) or parts[2] not in ("events", *OUTPUT_TOPICS):
        return None
    return parts[0], parts[1], parts[2]


def consumer_group(namespace: str, name: str, reader: str = "live") -> str:
    """The consumer group of a pipeline's processors; a replay reads under a reader name of its own."""
    suffix = "" if reader == "live" else f".{reader}"
    return f"tidemill.{namespace}.{name}{suffix}"


def window_table(aggregation: str, version: int) -> str:
    """The table that holds an aggregation version's windows."""
    return f"{aggregation}_v{version}"


def service(name: str, component: str) -> str:
    """The Service in front of a component of a pipeline; component is ingest or api."""
    return f"{name}-{component}"


def redis_prefix(namespace: str, name: str) -> str:
    """What every Redis key of a pipeline starts with. Neither part can hold a slash."""
    return f"tidemill/{namespace}/{name}"


def live_stream(namespace: str, name: str) -> str:
    """The Redis stream of a pipeline's live changes."""
    return f"{redis_prefix(namespace, name)}/live"


def live_listeners(namespace: str, name: str) -> str:
    """The Redis key that exists while somebody listens to a pipeline's live changes."""
    return f"{redis_prefix(namespace, name)}/listeners"


def ingest_keys(namespace: str, name: str) -> str:
    """What the Redis keys of a pipeline's batches with an Idempotency-Key start with."""
    return f"{redis_prefix(namespace, name)}/batches"


def ingest_owner(namespace: str, process: str) -> str:
    """The Redis key that exists while an ingest process lives; no pipeline's name begins with a tilde."""
    return f"tidemill/{namespace}/~ingest/{process}"
