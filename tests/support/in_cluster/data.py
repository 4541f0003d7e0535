"""What a pipeline has outside of the cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from confluent_kafka.admin import AdminClient

from tidemill_contract import names


@dataclass
class Data:
    """What a pipeline has outside of the cluster."""

    servers: Any

    def topics(self, namespace: str) -> set[str]:
        """All of a namespace's pipelines."""
        found = AdminClient({"bootstrap.servers": self.servers.kafka}).list_topics(timeout=20).topics
        return {name for name in found if name.startswith(f"{namespace}.")}

    def has_schema(self, namespace: str, name: str) -> bool:
        """Whether its tables are there."""
        with psycopg.connect(self.servers.postgres.url) as session:
            wanted = names.schema(namespace, name)
            return session.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (wanted,)).fetchone() is not None
