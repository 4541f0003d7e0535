"""Reads the servers of pipelines without writing to them.

Addresses come from the environment, or else from a running `tidemill up`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_operator import kafka_topics
from tidemill_operator.actuators.kafka.clusters import Clusters, secret_file_reader
from tidemill_operator.actuators.kafka.session import KafkaSession
from tidemill_operator.actuators.kafka.topics import KafkaTopics
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.cli.main import CommandError
from tidemill_operator.cli.status import is_running, read_state
from tidemill_operator.errors import TidemillError
from tidemill_operator.laptop.servers.postgres import admin_address
from tidemill_operator.laptop.store import Store
from tidemill_operator.plan.live import LiveFacts, LiveSchema, LiveTopic, Owner
from tidemill_operator.plan.model import Plan, Schema
from tidemill_operator.plan.refusals import topics_to_observe
from tidemill_operator.settings import Platform

Configs = Mapping[str, Mapping[str, str]]
ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class LiveServers:
    """Read-only access to the servers of the pipelines.

    Attributes:
        uids: uids of the pipelines in `tidemill up`, by `namespace/name`, or None if `tidemill up` is not running.
        references: the folder with the Secrets that pipelines refer to.
    """

    platform: Platform
    uids: Mapping[str, str] | None = None
    references: Path = field(default=Path(), compare=False, kw_only=True)

    @property
    def kafka(self) -> str | None:
        """The address of Kafka."""
        return self.platform.kafka_brokers or None

    @property
    def postgres(self) -> str | None:
        """The address of Postgres, without the login."""
        return self.platform.postgres.public_url if self.platform.postgres.host else None

    def schema(self, name: str) -> LiveSchema | None:
        """Return a schema from Postgres, or None if the schema or Postgres' address is missing.

        Raises:
            TidemillError: Postgres does not answer.
        """
        if self.postgres is None:
            return None
        return PostgresSchemas(self.platform.postgres, read_only=True).observe(name)

    def conflicts(self, schema: Schema, owner: Owner) -> list[TidemillError]:
        """Return an error for each topic and role that the schema needs but another pipeline owns.

        Raises:
            TidemillError: Postgres does not answer.
        """
        if self.postgres is None:
            return []
        return PostgresSchemas(self.platform.postgres, read_only=True).conflicts(schema, owner)

    def pattern_candidates(self, pipeline: AnalyticsPipeline) -> tuple[str, ...]:
        """Return the existing topics that the pipeline's topic pattern may match.

        Raises:
            TidemillError: Kafka does not answer.
        """
        if self.kafka is None:
            return ()
        kafka = KafkaTopics(self.kafka, config=self.platform.kafka_config, timeout_seconds=ANSWER_SECONDS)
        return kafka_topics.pattern_candidates(pipeline, self.platform, kafka, self._clusters())

    def read_facts(
        self, plan: Plan, schema: LiveSchema | None, candidates: tuple[str, ...] = ()
    ) -> tuple[LiveFacts, Configs]:
        """Return the live state of a plan's topics, and the configs of the topics.

        Raises:
            TidemillError: Kafka does not answer.
        """
        if self.kafka is None:
            return LiveFacts(schema=schema), {}
        kafka = KafkaTopics(self.kafka, config=self.platform.kafka_config, timeout_seconds=ANSWER_SECONDS)
        topics = kafka.observe(topics_to_observe(plan, schema))
        configs = kafka.configs(list(topics))
        topics = {**topics, **self._external_topics(plan)}
        return LiveFacts(topics, kafka.broker_count(), schema, pattern_candidates=candidates), configs

    def _external_topics(self, plan: Plan) -> dict[str, LiveTopic]:
        clusters = self._clusters()
        topics = [(topic.name, topic.kafka) for topic in plan.topics if topic.kafka is not None]
        live_topics = {name: clusters.topic(plan.namespace, kafka, name) for name, kafka in topics}
        return {name: live for name, live in live_topics.items() if live is not None}

    def _clusters(self) -> Clusters:
        own_session = KafkaSession(self.platform.kafka_brokers, self.platform.kafka_config, ANSWER_SECONDS)
        return Clusters(secret_file_reader(self.references), own_session)


def find_servers(data_dir: Path, environ: Mapping[str, str]) -> LiveServers:
    """Return the servers that the environment names, or else the servers of a running `up`.

    Raises:
        CommandError: the running `up` does not publish the login of its Postgres.
        ValueError: a variable has a wrong value.
    """
    platform, references = Platform.from_env(environ), data_dir / "secret-refs"
    state = read_state(data_dir)
    if state is None or not is_running(state):
        return LiveServers(platform, references=references)
    platform = replace(platform, kafka_brokers=platform.kafka_brokers or str(state["addresses"]["kafka"]))
    if not platform.postgres.host:
        platform = replace(platform, postgres=_postgres(data_dir, state))
    stored = Store(data_dir / "state")
    uids = {pipeline.key: str(pipeline.document["metadata"]["uid"]) for pipeline in stored}
    return LiveServers(platform, uids, references=references)


def _postgres(data_dir: Path, state: Mapping[str, Any]) -> PostgresAddress:
    if "postgres" not in state["servers"]:
        raise CommandError(
            f"the running `up` does not publish the login of {state['addresses']['postgres']};"
            " set TIDEMILL_POSTGRES_URL"
        )
    return admin_address(data_dir, int(state["servers"]["postgres"]["port"]))
