"""Tests that operators killed after each write reach the same state as an operator without kills.

Writes are those to a real API server, Kafka and Postgres. Most writes last, and the next pass continues after them.
Statements inside a transaction are rolled back. Therefore passes are killed after the first statement, after the
second, and so on to the commit. Each write kills exactly one operator.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from confluent_kafka.admin import AdminClient
from psycopg.pq import TransactionStatus

from tidemill_contract import names
from tidemill_operator.actuators.kafka import session as kafka_session
from tidemill_operator.actuators.kafka.topics import KafkaTopics
from tidemill_operator.actuators.kubernetes.api import EVENT, KINDS, POD, Api, Document, Kind
from tidemill_operator.actuators.postgres import session as postgres_session
from tidemill_operator.actuators.postgres.session import Session
from tidemill_operator.cluster.queue import Result
from tidemill_operator.keys import Key
from tidemill_operator.laptop.servers import Servers

pytestmark = [pytest.mark.kubernetes, pytest.mark.integration, pytest.mark.slow]

REPLICA_SET = Kind("apps/v1", "ReplicaSet", "replicasets")
_MAX_WRITES = 500


class Killed(BaseException):
    """The death of an operator, which no handler of `Exception` catches.

    Attributes:
        what: the last write.
        lasts: whether the write remains after the death.
    """

    def __init__(self, what: str, *, lasts: bool) -> None:
        super().__init__(what)
        self.what, self.lasts = what, lasts


@dataclass
class Death:
    """Kills a pass after a number of writes.

    Attributes:
        after: the number of writes; 0 kills no pass.
        writes: writes of the current pass.
        created: UIDs of all objects that ever existed, by kind and name.
    """

    after: int = 0
    writes: int = 0
    created: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def wrote(self, what: str, *, lasts: bool = True) -> None:
        self.writes += 1
        if self.writes == self.after:
            raise Killed(what, lasts=lasts)


class MortalApi(Api):
    """A client that reports each write to `death`."""

    death: Death

    def _call(self, method: str, path: str, **more: Any) -> Document:
        answer = super()._call(method, path, **more)
        if method != "GET":
            # The test creates the pods, and an Event may be lost.
            if method != "DELETE" and answer["kind"] not in (POD.kind, EVENT.kind):
                self.death.created[f"{answer['kind']} {answer['metadata']['name']}"].add(answer["metadata"]["uid"])
            self.death.wrote(f"Kubernetes: {method} {path}")
        return answer


@pytest.fixture
def death(monkeypatch: pytest.MonkeyPatch) -> Death:
    """Let Kafka's real client and the real Postgres sessions report each answered write to `death`."""
    coming = Death()

    class MortalAdmin(AdminClient):  # type: ignore[misc]
        def create_topics(self, *arguments: Any, **keywords: Any) -> Any:
            if keywords.get("validate_only"):
                return super().create_topics(*arguments, **keywords)
            return self._done("create_topics", arguments, keywords)

        def create_partitions(self, *arguments: Any, **keywords: Any) -> Any:
            return self._done("create_partitions", arguments, keywords)

        def incremental_alter_configs(self, *arguments: Any, **keywords: Any) -> Any:
            return self._done("incremental_alter_configs", arguments, keywords)

        def delete_topics(self, *arguments: Any, **keywords: Any) -> Any:
            return self._done("delete_topics", arguments, keywords)

        def _done(self, what: str, arguments: Any, keywords: Any) -> Any:
            futures = getattr(super(), what)(*arguments, **keywords)
            for future in futures.values():
                future.exception(timeout=30)
            coming.wrote(f"Kafka: {what} {', '.join(str(name) for name in futures)}")
            return futures

    class MortalSession(Session):
        def write(self, text: str, *parts: Any, **keywords: Any) -> None:
            super().write(text, *parts, **keywords)
            self._wrote(text.format(*["…"] * text.count("{}")))

        def write_rows(self, statement: Any, parameters: Any = ()) -> None:
            before = self.changed
            super().write_rows(statement, parameters)
            if self.changed > before:
                self._wrote("rows")

        @contextmanager
        def transaction(self, schema: str) -> Iterator[None]:
            before = self.changed
            with super().transaction(schema):
                yield
            if self.changed > before:
                coming.wrote("Postgres: COMMIT")

        def _wrote(self, what: str) -> None:
            alone = self.connection.info.transaction_status == TransactionStatus.IDLE
            coming.wrote(f"Postgres: {what}", lasts=alone)

    monkeypatch.setattr(kafka_session, "AdminClient", MortalAdmin)
    monkeypatch.setattr(postgres_session, "Session", MortalSession)
    return coming


def until_one_survives(passes: Any, key: Key, death: Death) -> list[str]:
    """Run passes of killed operators until one pass completes. Return the writes that killed the others."""
    written: list[str] = []
    death.after = 1
    while len(written) < _MAX_WRITES:
        api = MortalApi(passes.api.configuration)
        api.death, death.writes = death, 0
        try:
            passes.controller(api).run_pass(key)
        except Killed as killed:
            written.append(killed.what)
            death.after = 1 if killed.lasts else death.after + 1
        else:
            death.after = 0
            return written
    pytest.fail(f"passes still write after {_MAX_WRITES} writes: {written[-5:]}")


def print_counts(what: str, written: list[str]) -> None:
    """Print the number of writes to each system."""
    counts: dict[str, int] = defaultdict(int)
    for write in written:
        counts[write.partition(":")[0]] += 1
    print(f"{what}: killed after each of {len(written)} writes: {dict(counts)}", file=sys.stderr)


def settle(passes: Any, key: Key, death: Death) -> None:
    """Run passes, none of them killed, until two in a row have settled."""
    death.after = 0

    def once() -> Result:
        api = MortalApi(passes.api.configuration)
        api.death = death
        return Result(passes.controller(api).run_pass(key))

    for _ in range(60):
        if once() is Result.SETTLED and once() is Result.SETTLED:
            return
    pytest.fail(f"{key} does not settle")


def state(cluster: Any, servers: Servers, key: Key) -> str:
    """Return all that exists for a pipeline as text, without the differences between two equal pipelines."""
    kept: dict[str, Any] = {}
    for (kind, name), item in sorted(cluster.children(key.namespace).items()):
        metadata, data = item["metadata"], item.get("data")
        managers = {(e["manager"], e["operation"]) for e in metadata["managedFields"] if "f:spec" in e["fieldsV1"]}
        kept[f"{kind} {name}"] = {
            "labels": metadata["labels"],
            "owners": metadata["ownerReferences"],
            "spec": item.get("spec") if kind != "Service" else item["spec"]["ports"],
            "data": sorted(data) if kind == "Secret" and data else data,
            "managers": sorted(managers),
        }
        for annotation in ("tidemill.dev/credentials", "tidemill.dev/config"):
            if kind == "Deployment":
                kept[f"{kind} {name}"]["spec"]["template"]["metadata"]["annotations"].pop(annotation, None)
    status = cluster.get(key)["status"]
    shown = {name: status[name] for name in ("endpoints", "schema", "aggregations", "replicas")}
    shown["conditions"] = {condition["type"]: condition["status"] for condition in status["conditions"]}
    text = json.dumps([kept, shown, in_kafka(servers, key), in_postgres(servers, key)], sort_keys=True, default=str)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.+]+", "<moment>", text)
    schema = names.schema(key.namespace, key.name).removesuffix("orders")
    return text.replace(key.uid, "<uid>").replace(key.namespace, "<namespace>").replace(schema, "<schema>")


def in_kafka(servers: Servers, key: Key) -> dict[str, Any]:
    """Return partitions, replication factor and config of each topic of a pipeline."""
    kafka = KafkaTopics(servers.kafka)
    topics = sorted(t for t in AdminClient({"bootstrap.servers": servers.kafka}).list_topics(timeout=30).topics)
    own = [topic for topic in topics if topic.startswith(f"{key.namespace}.{key.name}.")]
    live, configs = kafka.observe(own), kafka.configs(own)
    return {name: [live[name].partitions, live[name].replication_factor, configs[name]] for name in own}


_POSTGRES = {
    "columns": "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns"
    " WHERE table_schema = %(s)s ORDER BY 1, 2",
    "indexes": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = %(s)s ORDER BY 1",
    "functions": "SELECT proname, prosrc, prosecdef, proacl::text FROM pg_proc p JOIN pg_namespace n"
    " ON n.oid = pronamespace WHERE nspname = %(s)s ORDER BY 1",
    "rights": "SELECT relname, relkind, relacl::text, pg_get_userbyid(relowner) FROM pg_class c JOIN pg_namespace n"
    " ON n.oid = relnamespace WHERE nspname = %(s)s ORDER BY 1",
    "schema": "SELECT obj_description(oid, 'pg_namespace'), nspacl::text FROM pg_namespace WHERE nspname = %(s)s",
    "roles": "SELECT rolname, rolcanlogin, rolconfig::text FROM pg_roles WHERE starts_with(rolname, %(s)s) ORDER BY 1",
}


def in_postgres(servers: Servers, key: Key) -> dict[str, Any]:
    """Return schema, tables and roles of a pipeline. Roles with names that are cut short are left out."""
    schema = names.schema(key.namespace, key.name)
    with administrator(servers) as connection:
        state = {what: connection.execute(query, {"s": schema}).fetchall() for what, query in _POSTGRES.items()}
        if state["schema"]:
            for table in ("_aggregations", "_offsets", "_generation", "_readers"):
                rows = connection.execute(f'SELECT to_jsonb(t)::text FROM "{schema}"."{table}" t').fetchall()
                state[table] = sorted(rows)
    return state


def administrator(servers: Servers) -> psycopg.Connection[Any]:
    return psycopg.connect(servers.postgres.url, autocommit=True)


def identities(servers: Servers, key: Key) -> dict[str, str]:
    """Return the ids of topics and relations. A recreated one has the same name, but another id."""
    live = KafkaTopics(servers.kafka).observe(list(in_kafka(servers, key)))
    topics = {f"topic {name}": topic.id for name, topic in live.items()}
    query = "SELECT relname, c.oid::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
    with administrator(servers) as connection:
        rows = connection.execute(f"{query} WHERE nspname = %s", (names.schema(key.namespace, key.name),)).fetchall()
    return topics | {f"relation {name}": oid for name, oid in rows}


@pytest.fixture
def other_namespace(cluster: Any, namespace: str) -> Any:
    # Both names have the same length. Longer names that contain them are cut at the same place.
    name = f"{namespace[:-1]}{'0' if namespace[-1] != '0' else '1'}"
    cluster.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    cluster.api.delete(KINDS["Namespace"], None, name)


EDIT = {
    "source": {
        "topic": {"partitions": 4, "retention": "2d"},
        "fields": [{"name": "country", "type": "string"}, {"name": "amount", "type": "number"}],
    },
    "aggregations": [
        {
            "name": "by_country",
            "groupBy": ["country"],
            "window": {"type": "tumbling", "size": "1m"},
            "metrics": [
                {"name": "orders", "function": "count"},
                {"name": "revenue", "function": "sum", "field": "amount"},
            ],
        }
    ],
}


@pytest.mark.fault(
    "operator-killed-after-each-write", "each write kills one operator; same final state, nothing created twice"
)
def test_passes_killed_after_each_write_reach_the_state_of_one_that_is_not_killed(
    cluster: Any,
    servers: Servers,
    passes: Any,
    namespace: str,
    make: Callable[..., Key],
    other_namespace: str,
    death: Death,
) -> None:
    """The first passes create a pipeline. Later passes add partitions, change a config and add a metric."""
    whole, broken = make("orders", other_namespace), make("orders", namespace)
    settle(passes, whole, death)
    once = {name.replace(other_namespace, namespace) for name in death.created}
    death.created.clear()
    written = until_one_survives(passes, broken, death)
    print_counts("a first pass", written)
    assert {what.partition(":")[0] for what in written} == {"Kubernetes", "Kafka", "Postgres"}
    assert sum(what == "Postgres: COMMIT" for what in written) == 1
    settle(passes, broken, death)
    assert state(cluster, servers, broken) == state(cluster, servers, whole)
    # No object was created twice, and each Deployment has had one template.
    assert {name: len(uids) for name, uids in death.created.items()} == dict.fromkeys(once, 1)
    assert len(cluster.api.list(REPLICA_SET, namespace)) == 3
    events = [
        event["message"] for event in cluster.api.list(EVENT, namespace) if event["involvedObject"]["uid"] == broken.uid
    ]
    assert len(events) == len(set(events)), "an Event may be lost with its operator, but is never repeated"

    before = identities(servers, broken)
    for key in (whole, broken):
        cluster.patch(key, spec=EDIT)
    settle(passes, whole, death)
    written = until_one_survives(passes, broken, death)
    print_counts("an edit", written)
    settle(passes, broken, death)
    assert state(cluster, servers, broken) == state(cluster, servers, whole)
    after = identities(servers, broken)
    assert {name: after.get(name) for name in before} == before


@pytest.mark.fault("operator-killed-while-deleting", "each write kills one operator; nothing is left")
def test_a_deletion_killed_after_each_write_leaves_nothing(
    cluster: Any,
    servers: Servers,
    passes: Any,
    namespace: str,
    make: Callable[..., Key],
    eventually: Any,
    death: Death,
) -> None:
    """The resource, its objects, topics, schema and roles are deleted at the end."""
    key = make("orders", namespace, reclaimPolicy="Delete")
    settle(passes, key, death)
    cluster.api.delete(KINDS["AnalyticsPipeline"], namespace, "orders")
    written: list[str] = []

    def gone() -> bool:
        written.extend(until_one_survives(passes, key, death))
        return bool(cluster.get(key) == {})

    eventually(gone, what="the resource is deleted")
    print_counts("a deletion", written)
    assert {what.partition(":")[0] for what in written} == {"Kubernetes", "Kafka", "Postgres"}
    eventually(lambda: cluster.children(namespace) == {}, what="all objects are deleted")
    assert in_kafka(servers, key) == {}
    assert {what: rows for what, rows in in_postgres(servers, key).items() if rows} == {}
