"""The data of pipelines in Kafka and Postgres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from confluent_kafka.admin import AdminClient

from tidemill_contract import names


@dataclass
class Data:
    """Queries for the topics and schemas of pipelines."""

    servers: Any

    def topics(self, namespace: str) -> set[str]:
        """Return the topics of all pipelines of a namespace."""
        topics = AdminClient({"bootstrap.servers": self.servers.kafka}).list_topics(timeout=20).topics
        return {name for name in topics if name.startswith(f"{namespace}.")}

    def has_schema(self, namespace: str, name: str) -> bool:
        """Return whether the schema of a pipeline exists in Postgres."""
        with psycopg.connect(self.servers.postgres.url) as session:
            schema = names.schema(namespace, name)
            return session.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (schema,)).fetchone() is not None
