"""A pipeline on the real platform: processes of the local runtime on real servers, which the caller reconciles."""

from __future__ import annotations

import copy
import datetime as dt
import json
import os
import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from oracle.events import Event
from oracle.queries import Query
from tidemill_contract import names
from tidemill_contract.functions.partials import quote
from tidemill_operator.actuators.base import Actuators
from tidemill_operator.actuators.kafka.topics import KafkaTopics
from tidemill_operator.actuators.local.process_specs import ProcessSpecs
from tidemill_operator.actuators.local.runtime import LocalRuntime
from tidemill_operator.actuators.local.secrets import FileSecrets
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.plan.replay import DONE, REPLAY
from tidemill_operator.reconcile import reconcile, release
from tidemill_operator.settings import Platform
from waiting import NotInTime, eventually


class Stuck(AssertionError):
    """The platform did something that makes it impossible to continue the round."""


class Running:
    """One running pipeline.

    Args:
        servers: Kafka, Postgres and Redis.
        folder: a folder for configs, secrets and logs.
        document: the resource.
    """

    replays = True

    def __init__(self, servers: Any, folder: Path, document: Mapping[str, Any]) -> None:
        at = servers.postgres
        addresses = {
            "TIDEMILL_KAFKA_BROKERS": servers.kafka,
            "TIDEMILL_POSTGRES_HOST": at.host,
            "TIDEMILL_POSTGRES_PORT": str(at.port),
            "TIDEMILL_POSTGRES_DATABASE": at.database,
            "TIDEMILL_REDIS_URL": servers.redis,
            "TIDEMILL_SESSION_TIMEOUT_MS": "6000",
        }
        self._runtime = LocalRuntime(
            ProcessSpecs(folder, environ=os.environ, addresses=addresses, ports={"ingest": 0, "api": 0})
        )
        self._actuators = Actuators(
            kafka=KafkaTopics(servers.kafka),
            postgres=PostgresSchemas(at),
            secrets=FileSecrets(self._runtime.secrets_root),
            runtime=self._runtime,
        )
        self._document = copy.deepcopy(dict(document))
        self._status: dict[str, Any] | None = None
        self._producer = Producer({"bootstrap.servers": servers.kafka, "enable.idempotence": True, "linger.ms": 2})
        self._kafka = AdminClient({"bootstrap.servers": servers.kafka})
        self._database = psycopg.connect(
            host=at.host, port=at.port, dbname=at.database, user=at.user, password=at.password, autocommit=True
        )
        self._client = httpx.Client(timeout=60, trust_env=False)
        self.namespace, self.name = self._document["metadata"]["namespace"], self._document["metadata"]["name"]
        self._schema = quote(names.schema(self.namespace, self.name))
        self._runtime.start()
        self.settle()

    def close(self) -> None:
        """End the processes, and delete the topics and the schema."""
        self._document["spec"]["reclaimPolicy"] = "Delete"
        try:
            release(self._document, platform=Platform(), actuators=self._actuators)
        finally:
            self._runtime.close()
            del self._producer, self._kafka
            self._client.close()
            self._database.close()

    def sql(self, text: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query, in which `{s}` stands for the schema."""
        return self._database.execute(text.replace("{s}", self._schema)).fetchall()

    def edit(self, spec: Mapping[str, Any], _versions: Mapping[str, int]) -> None:
        """Apply a spec, and wait until all processes use it. The operator decides on versions."""
        self._document["spec"] = copy.deepcopy(dict(spec))
        self._document["metadata"]["generation"] += 1
        self.settle()
        # The config may keep its generation: an edit that does not concern processes does not rewrite it.
        config = next(self._runtime.config_root.rglob(f"{self.name}.json"))
        generation = json.loads(config.read_text())["generation"]
        eventually(lambda: self._get("").get("generation") == generation, what=f"the API has generation {generation}")

    def settle(self) -> None:
        """Reconcile until the pipeline is ready."""

        def settled() -> bool:
            conditions = self._reconcile()
            return "Ready" in conditions and "Progressing" not in conditions

        try:
            eventually(settled, what="the pipeline is ready", seconds=90)
        except NotInTime as error:
            conditions = [(c["type"], c["status"], c["message"]) for c in (self._status or {}).get("conditions", ())]
            raise Stuck(f"{error}; {conditions}") from error

    def _reconcile(self) -> dict[str, str]:
        self._status = reconcile(
            self._document,
            platform=Platform(),
            actuators=self._actuators,
            previous=self._status,
            now=dt.datetime.now(dt.UTC),
        )
        return {c["type"]: c["reason"] for c in self._status["conditions"] if c["status"] == "True"}

    def versions(self) -> dict[str, int]:
        """Return the current version of each aggregation."""
        return {item["name"]: item["version"] for item in (self._status or {})["aggregations"]}

    def replay(self, aggregations: Sequence[str], meanwhile: Callable[[], None]) -> None:
        """Replay aggregations, and wait until the API answers from the new versions.

        `meanwhile` is called during the replay.
        """
        request = json.dumps({"aggregations": list(aggregations), "at": str(time.time_ns())})
        self._document["metadata"]["annotations"] = {REPLAY: request}
        self._reconcile()
        meanwhile()

        def done() -> bool:
            self._reconcile()
            return bool((self._status or {}).get("replay", {}).get("phase") == DONE)

        eventually(done, what="the replay is done", seconds=120)
        self.settle()
        expected = self.versions()

        def switched() -> bool:
            return {item["name"]: item["version"] for item in self._get("")["aggregations"]} == expected

        eventually(switched, what=f"the API answers from the versions {expected}")

    def send(self, events: Sequence[Event]) -> None:
        """Produce records to their partitions, and wait until all are acknowledged at their offsets."""
        placed: list[tuple[int, int]] = []
        refused: list[str] = []

        def delivered(error: Any, record: Any) -> None:
            if error is not None:
                refused.append(str(error))
            placed.append((record.partition(), record.offset()))

        for event in events:
            topic = f"{self.namespace}.{self.name}.events"
            self._producer.produce(topic, event.raw, partition=event.partition, on_delivery=delivered)
            self._producer.poll(0)
        if self._producer.flush(60) or refused:
            raise Stuck(f"not acknowledged: {refused[:3]}")
        if sorted(placed) != sorted((event.partition, event.offset) for event in events):
            raise Stuck("the broker assigned other offsets than expected")

    def await_counted(self, number: int) -> None:
        """Wait until this number of records is consumed."""
        query = "SELECT coalesce(sum(consumed), 0)::bigint FROM {s}._offsets WHERE reader = 'live'"
        eventually(lambda: self.sql(query)[0][0] >= number, what=f"{number} records are counted", seconds=90)

    def await_closed(self, closed: Mapping[tuple[str, int], int | None]) -> None:
        """Wait until windows are closed up to these times, which are given by aggregation and version."""

        def closed_now() -> dict[tuple[str, int], int | None]:
            rows = self.sql("SELECT name, version, closed_until FROM {s}._aggregations")
            return {(name, version): until for name, version, until in rows if (name, version) in closed}

        eventually(lambda: closed_now() == dict(closed), what=f"closed until {closed}, now {closed_now()}")

    def kill(self, rnd: random.Random, component: str = "processor") -> bool:
        """Kill a random process of a component; the runtime starts it again. Return False if no process runs."""
        pids = self.pids(component)
        if not pids:
            return False
        with suppress(ProcessLookupError):
            os.kill(rnd.choice(pids), signal.SIGKILL)
        return True

    def pids(self, component: str) -> list[int]:
        """Return the process ids of a component."""
        prefix = f"{self.namespace}.{self.name}-{component}-"
        return [state.pid for name, state in self._runtime.states().items() if name.startswith(prefix) and state.pid]

    def reset_group(self, reader: str = "live", kind: str = "events") -> None:
        """Reset the consumer group of a reader to the beginning of its topic, while the pipeline is suspended."""
        self._suspended(True)
        topic = names.topic(self.namespace, self.name, kind)
        group = names.consumer_group(self.namespace, self.name, reader)
        partitions = range(self._document["spec"]["source"]["topic"]["partitions"])

        def reset() -> bool:
            offsets = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, p, 0) for p in partitions])
            try:
                answer = self._kafka.alter_consumer_group_offsets([offsets])[group].result(15)
            except KafkaException:
                return False
            return all(partition.error is None for partition in answer.topic_partitions)

        eventually(reset, what="the group's offsets are reset")
        self._suspended(False)

    def _suspended(self, suspend: bool) -> None:
        self._document["spec"]["suspend"] = suspend
        self._document["metadata"]["generation"] += 1
        if not suspend:
            self.settle()
            return
        prefix = f"{self.namespace}.{self.name}-processor"

        def ended() -> bool:
            self._reconcile()
            return not any(s.pid for name, s in self._runtime.states().items() if name.startswith(prefix))

        eventually(ended, what="no processor runs")

    def await_members(self, number: int) -> None:
        """Wait until this number of processors shares the partitions."""
        group = names.consumer_group(self.namespace, self.name)

        def members() -> int:
            described = self._kafka.describe_consumer_groups([group])[group].result(15)
            return sum(bool(member.assignment.topic_partitions) for member in described.members)

        eventually(lambda: members() == number, what=f"{number} processors have partitions")

    def grow(self, spec: Mapping[str, Any]) -> None:
        """Apply a spec with more partitions, and wait until events can be sent to all of them."""
        self.edit(spec, {})
        topic, expected = names.topic(self.namespace, self.name, "events"), spec["source"]["topic"]["partitions"]

        def partitions() -> int:
            return len(self._producer.list_topics(topic, timeout=15).topics[topic].partitions)

        eventually(lambda: partitions() == expected, what=f"{topic} has {expected} partitions")

    def rows(self, aggregation: str, query: Query) -> list[dict[str, Any]]:
        """Read all pages of a query, and return their rows."""
        rows: list[dict[str, Any]] = []
        parameters = query.parameters()
        while True:
            page = self._get(f"/aggregates/{aggregation}", **parameters)
            rows += page["data"]
            if len(page["data"]) > query.limit or (not page["data"] and page["next_cursor"]):
                raise Stuck(f"a page of {len(page['data'])} rows for limit {query.limit}")
            if page["next_cursor"] is None:
                return rows
            parameters["cursor"] = page["next_cursor"]

    def _get(self, path: str, **parameters: Any) -> dict[str, Any]:
        base = f"{self._runtime.endpoints(self.namespace, self.name)['api']}/v1/pipelines/{self.name}"
        answer = self._client.get(f"{base}{path}", params=parameters)
        if answer.status_code != httpx.codes.OK:
            raise Stuck(f"GET {answer.request.url}: {answer.status_code} {answer.text[:400]}")
        return dict(answer.json())
