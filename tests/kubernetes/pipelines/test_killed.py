"""An operator that is killed after every single write, again and again, comes to the same end as one that is not.

Writes are those to Kubernetes, Kafka and Postgres. A write that lasts is a place to die at once: the next pass begins
with it done. Statements inside a transaction are undone by a death, so a pass has to die after the first, the second,
the third of them, until one dies right after the commit. So each write there is kills exactly one operator.
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
_MOST = 500


class Killed(BaseException):
    """What no handler of errors catches."""

    def __init__(self, what: str, *, lasts: bool) -> None:
        super().__init__(what)
        self.what, self.lasts = what, lasts


@dataclass
class Death:
    """Comes after so many writes of a pass.

    Attributes:
        after: how many; 0: never.
        made: identities of all that was ever there, by what it is called.
    """

    after: int = 0
    seen: int = 0
    made: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def wrote(self, what: str, *, lasts: bool = True) -> None:
        self.seen += 1
        if self.seen == self.after:
            raise Killed(what, lasts=lasts)


class MortalApi(Api):
    """Dies after a write."""

    death: Death

    def _call(self, method: str, path: str, **more: Any) -> Document:
        answer = super()._call(method, path, **more)
        if method != "GET":
            # Pods are not ours, and an event may be lost.
            if method != "DELETE" and answer["kind"] not in (POD.kind, EVENT.kind):
                self.death.made[f"{answer['kind']} {answer['metadata']['name']}"].add(answer["metadata"]["uid"])
            self.death.wrote(f"Kubernetes: {method} {path}")
        return answer


@pytest.fixture
def death(monkeypatch: pytest.MonkeyPatch) -> Death:
    """Has Kafka's client and Postgres' sessions die, too; the real ones, and right after they were answered."""
    coming = Death()

    class MortalAdmin(AdminClient):  # type: ignore[misc]
        def create_topics(self, *asked: Any, **named: Any) -> Any:
            if named.get("validate_only"):
                return super().create_topics(*asked, **named)
            return self._done("create_topics", asked, named)

        def create_partitions(self, *asked: Any, **named: Any) -> Any:
            return self._done("create_partitions", asked, named)

        def incremental_alter_configs(self, *asked: Any, **named: Any) -> Any:
            return self._done("incremental_alter_configs", asked, named)

        def delete_topics(self, *asked: Any, **named: Any) -> Any:
            return self._done("delete_topics", asked, named)

        def _done(self, what: str, asked: Any, named: Any) -> Any:
            futures = getattr(super(), what)(*asked, **named)
            for future in futures.values():
                future.exception(timeout=30)
            coming.wrote(f"Kafka: {what} {', '.join(str(name) for name in futures)}")
            return futures

    class MortalSession(Session):
        def write(self, text: str, *parts: Any, **named: Any) -> None:
            super().write(text, *parts, **named)
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


def until_it_lives(passes: Any, key: Key, death: Death) -> list[str]:
    """Passes of operators that are killed, until one comes to its end; the writes that killed them."""
    written: list[str] = []
    death.after = 1
    while len(written) < _MOST:
        api = MortalApi(passes.api.configuration)
        api.death, death.seen = death, 0
        try:
            passes.controller(api).work(key)
        except Killed as killed:
            written.append(killed.what)
            death.after = 1 if killed.lasts else death.after + 1
        else:
            death.after = 0
            return written
    pytest.fail(f"after {_MOST} writes it still writes: {written[-5:]}")


def tell(what: str, written: list[str]) -> None:
    """How many writes there were."""
    counts: dict[str, int] = defaultdict(int)
    for one in written:
        counts[one.partition(":")[0]] += 1
    print(f"{what}: killed after each of {len(written)} writes: {dict(counts)}", file=sys.stderr)


def settle(passes: Any, key: Key, death: Death) -> None:
    """Passes that nobody kills."""
    death.after = 0

    def once() -> Result:
        api = MortalApi(passes.api.configuration)
        api.death = death
        return Result(passes.controller(api).work(key))

    for _ in range(60):
        if once() is Result.SETTLED and once() is Result.SETTLED:
            return
    pytest.fail("it does not settle")


def state(cluster: Any, servers: Servers, key: Key) -> str:
    """Everything that was made, without what differs from one pipeline to another."""
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
    told = {name: status[name] for name in ("endpoints", "schema", "aggregations", "replicas")}
    told["conditions"] = {condition["type"]: condition["status"] for condition in status["conditions"]}
    text = json.dumps([kept, told, in_kafka(servers, key), in_postgres(servers, key)], sort_keys=True, default=str)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.+]+", "<moment>", text)
    schema = names.schema(key.namespace, key.name).removesuffix("orders")
    return text.replace(key.uid, "<uid>").replace(key.namespace, "<namespace>").replace(schema, "<schema>")


def in_kafka(servers: Servers, key: Key) -> dict[str, Any]:
    """A pipeline's topics: partitions, replicas and configs."""
    kafka = KafkaTopics(servers.kafka)
    topics = sorted(t for t in AdminClient({"bootstrap.servers": servers.kafka}).list_topics(timeout=30).topics)
    ours = [topic for topic in topics if topic.startswith(f"{key.namespace}.{key.name}.")]
    live, configs = kafka.observe(ours), kafka.configs(ours)
    return {name: [live[name].partitions, live[name].replication_factor, configs[name]] for name in ours}


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
    """A pipeline's schema and roles; of those whose names are cut short only the schema counts."""
    schema = names.schema(key.namespace, key.name)
    with administrator(servers) as connection:
        found = {what: connection.execute(query, {"s": schema}).fetchall() for what, query in _POSTGRES.items()}
        if found["schema"]:
            for table in ("_aggregations", "_offsets", "_generation", "_readers"):
                rows = connection.execute(f'SELECT to_jsonb(t)::text FROM "{schema}"."{table}" t').fetchall()
                found[table] = sorted(rows)
    return found


def administrator(servers: Servers) -> psycopg.Connection[Any]:
    at = servers.postgres
    return psycopg.connect(
        host=at.host, port=at.port, dbname=at.database, user=at.user, password=at.password, autocommit=True
    )


def identities(servers: Servers, key: Key) -> dict[str, str]:
    """What tells a topic, schema or table from a later one of its name."""
    live = KafkaTopics(servers.kafka).observe(list(in_kafka(servers, key)))
    found = {f"topic {name}": topic.id for name, topic in live.items()}
    query = "SELECT relname, c.oid::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
    with administrator(servers) as connection:
        rows = connection.execute(f"{query} WHERE nspname = %s", (names.schema(key.namespace, key.name),)).fetchall()
    return found | {f"relation {name}": oid for name, oid in rows}


@pytest.fixture
def other_namespace(cluster: Any, namespace: str) -> Any:
    # As long as the other, so that no name is cut where the other's is not.
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


@pytest.mark.fault("operator-killed-after-each-write", "each write kills one operator; same end, nothing made twice")
def test_passes_killed_after_each_write_end_the_same(
    cluster: Any,
    servers: Servers,
    passes: Any,
    namespace: str,
    make: Callable[..., Key],
    other_namespace: str,
    death: Death,
) -> None:
    """First all of a pipeline is made, then topics grow, a config changes, and a metric comes."""
    whole, broken = make("orders", other_namespace), make("orders", namespace)
    settle(passes, whole, death)
    once = {name.replace(other_namespace, namespace) for name in death.made}
    death.made.clear()
    written = until_it_lives(passes, broken, death)
    tell("a first pass", written)
    assert {what.partition(":")[0] for what in written} == {"Kubernetes", "Kafka", "Postgres"}
    assert sum(what == "Postgres: COMMIT" for what in written) == 1
    settle(passes, broken, death)
    assert state(cluster, servers, broken) == state(cluster, servers, whole)
    # Nothing was made twice, and each Deployment has had one template.
    assert {name: len(uids) for name, uids in death.made.items()} == dict.fromkeys(once, 1)
    made = [item["metadata"]["name"] for item in cluster.api.list(REPLICA_SET, namespace)]
    assert len(made) == 3
    events = [
        event["message"] for event in cluster.api.list(EVENT, namespace) if event["involvedObject"]["uid"] == broken.uid
    ]
    assert len(events) == len(set(events)), "an event may be lost with its operator, but is never told twice"

    before = identities(servers, broken)
    for key in (whole, broken):
        cluster.patch(key, spec=EDIT)
    settle(passes, whole, death)
    written = until_it_lives(passes, broken, death)
    tell("an edit", written)
    settle(passes, broken, death)
    assert state(cluster, servers, broken) == state(cluster, servers, whole)
    after = identities(servers, broken)
    assert {name: after.get(name) for name in before} == before


@pytest.mark.fault("operator-killed-while-deleting", "each write kills one operator; nothing is left")
def test_a_release_killed_after_each_write_ends_the_same(
    cluster: Any,
    servers: Servers,
    passes: Any,
    namespace: str,
    make: Callable[..., Key],
    eventually: Any,
    death: Death,
) -> None:
    """Deleting is as patient: nothing is left of the resource and of what it had."""
    key = make("orders", namespace, reclaimPolicy="Delete")
    settle(passes, key, death)
    cluster.api.delete(KINDS["AnalyticsPipeline"], namespace, "orders")
    written: list[str] = []

    def gone() -> bool:
        written.extend(until_it_lives(passes, key, death))
        return bool(cluster.get(key) == {})

    eventually(gone, what="the resource is gone")
    tell("a release", written)
    assert {what.partition(":")[0] for what in written} == {"Kubernetes", "Kafka", "Postgres"}
    eventually(lambda: cluster.children(namespace) == {}, what="nothing is left")
    assert in_kafka(servers, key) == {}
    assert {what: rows for what, rows in in_postgres(servers, key).items() if rows} == {}
