"""reconcile() and `tidemill plan` on a real Kafka and Postgres: what is planned is what is then done."""

from __future__ import annotations

import copy
import datetime as dt
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from confluent_kafka import Producer

from kafka_admin import KafkaAdmin
from played.no_processes import NoProcesses
from tidemill_operator.actuators.base import Actuators
from tidemill_operator.actuators.kafka.log import KafkaLog
from tidemill_operator.actuators.kafka.topics import KafkaTopics
from tidemill_operator.actuators.local.secrets import FileSecrets
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.cli.main import main
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.laptop.servers import Servers
from tidemill_operator.observer.observer import KAFKA_SECONDS, Observer
from tidemill_operator.observer.progress import Look, Progress
from tidemill_operator.processes.child import start_time
from tidemill_operator.reconcile import reconcile, release
from tidemill_operator.settings import Platform

pytestmark = pytest.mark.integration

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
TOPICS = [f"rectest.orders.{kind}" for kind in ("events", "results", "dead-letters")]
SCHEMA = "rectest__orders"
DOCUMENT: dict[str, Any] = {
    "apiVersion": "tidemill.dev/v1alpha1",
    "kind": "AnalyticsPipeline",
    "metadata": {"name": "orders", "namespace": "rectest", "uid": "uid-1", "generation": 1},
    "spec": {
        "reclaimPolicy": "Delete",
        "source": {
            "topic": {"partitions": 3},
            "fields": [
                {"name": "ts", "type": "timestamp", "required": True},
                {"name": "shop", "type": "string"},
                {"name": "amount", "type": "number"},
            ],
            "eventTime": {"field": "ts"},
        },
        "aggregations": [
            {
                "name": "by_shop",
                "groupBy": ["shop"],
                "window": {"type": "tumbling", "size": "1h"},
                "metrics": [{"name": "orders", "function": "count"}],
            }
        ],
    },
}


class Applied:
    """One resource, its file, and the world that it is applied to."""

    def __init__(self, servers: Servers, folder: Path) -> None:
        self.servers, self.folder = servers, folder
        self.document = copy.deepcopy(DOCUMENT)
        self.status: dict[str, Any] | None = None
        self.kafka = KafkaTopics(servers.kafka)
        self.actuators = Actuators(
            kafka=self.kafka,
            postgres=PostgresSchemas(servers.postgres),
            secrets=FileSecrets(folder / "secrets"),
            runtime=NoProcesses(),
        )

    @property
    def spec(self) -> dict[str, Any]:
        return dict(self.document["spec"])

    def edit(self, **spec: Any) -> None:
        """The next generation, with these members of the spec."""
        self.document = copy.deepcopy(self.document)
        self.document["spec"] |= spec
        self.document["metadata"]["generation"] += 1

    def apply(self) -> dict[str, str]:
        """One pass; the conditions that are true, with their reasons."""
        self.status = reconcile(
            self.document, platform=Platform(), actuators=self.actuators, previous=self.status, now=NOON
        )
        return {c["type"]: c["reason"] for c in self.status["conditions"] if c["status"] == "True"}

    def message(self, kind: str) -> str:
        assert self.status is not None
        return next(str(c["message"]) for c in self.status["conditions"] if c["type"] == kind)

    def plan(self, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
        """`tidemill plan` of the file as a user has it: without uid and generation."""
        written = copy.deepcopy(self.document)
        written["metadata"] = {"name": "orders", "namespace": "rectest"}
        file = self.folder / "orders.yaml"
        file.write_text(yaml.safe_dump(written))
        code = main(["plan", str(file), "--data-dir", str(self.folder / "none"), *more])
        return code, capsys.readouterr().out

    def there(self) -> tuple[set[str], bool]:
        """Which of the topics exist, and whether the schema does."""
        return set(self.kafka.observe(TOPICS)), self.actuators.postgres.observe(SCHEMA) is not None

    def alter_topic(self, **config: str) -> None:
        """Somebody else's change."""
        altered = {key.replace("_", "."): value for key, value in config.items()}
        KafkaAdmin(self.servers.kafka).alter(TOPICS[0], altered)


@pytest.fixture
def bench(servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Applied]:
    for name in [name for name in os.environ if name.startswith("TIDEMILL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TIDEMILL_KAFKA_BROKERS", servers.kafka)
    monkeypatch.setenv("TIDEMILL_POSTGRES_URL", servers.postgres.url)
    made = Applied(servers, tmp_path)
    yield made
    made.document["spec"]["reclaimPolicy"] = "Delete"
    release(made.document, platform=Platform(), actuators=made.actuators)
    assert made.there() == (set(), False)


WELL = dict.fromkeys(("Ready", "TopicsReady", "SchemaReady", "ProcessorsReady", "IngestReady", "APIReady"), "Applied")


def test_a_plan_makes_nothing(bench: Applied, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is applied all is new, and after the plan still nothing is there."""
    code, shown = bench.plan(capsys)
    assert code == 0
    assert f"compared with Kafka {bench.servers.kafka} and Postgres {bench.servers.postgres.public_url}" in shown
    assert "+ topic rectest.orders.events (partitions 3, replicationFactor 1)" in shown
    assert shown.endswith("23 to create, 0 to change, 0 to remove\n")
    assert bench.there() == (set(), False)


def test_what_was_applied_is_no_change(bench: Applied, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything is made, a second pass has an equal status, and the plan has nothing to tell."""
    assert bench.apply() == WELL
    assert bench.there() == (set(TOPICS), True)
    first = bench.status
    assert bench.apply() == WELL
    assert bench.status == first
    code, shown = bench.plan(capsys)
    assert (code, shown.splitlines()[-1]) == (0, "no changes")


def test_an_edit_is_planned_and_then_done(bench: Applied, capsys: pytest.CaptureFixture[str]) -> None:
    """More partitions, a column, a drifted config: each with both values; then none is left."""
    bench.apply()
    bench.alter_topic(retention_ms="1000")
    metrics = [*bench.spec["aggregations"][0]["metrics"], {"name": "sales", "function": "sum", "field": "amount"}]
    bench.edit(
        source={**bench.spec["source"], "topic": {"partitions": 5}},
        aggregations=[{**bench.spec["aggregations"][0], "metrics": metrics}],
        processor={"replicas": 2},
    )
    code, shown = bench.plan(capsys)
    assert code == 0
    assert shown.splitlines()[2:] == [
        "rectest/orders, generation 2",
        "~ topic rectest.orders.events",
        "    ~ partitions: 3 → 5",
        "    ~ config.retention.ms: 1000 → 604800000",
        "~ table by_shop_v1",
        "    + _sum_amount: double precision",
        "~ config orders.json",
        "    ~ generation: 1 → 2",
        "    ~ spec.source.topic.partitions: 3 → 5",
        "    + spec.aggregations[by_shop].metrics[sales].function: sum",
        "    + spec.aggregations[by_shop].metrics[sales].field: amount",
        "    ~ spec.processor.replicas: 1 → 2",
        "~ workload orders-processor",
        "    ~ replicas: 1 → 2",
        "    ~ processes: with the former config → with the new config",
        "0 to create, 4 to change, 0 to remove",
    ]
    assert bench.kafka.observe(TOPICS)[TOPICS[0]].partitions == 3
    assert bench.apply() == WELL
    assert bench.kafka.observe(TOPICS)[TOPICS[0]].partitions == 5
    assert bench.plan(capsys)[1].splitlines()[-1] == "no changes"


def test_a_refused_edit_is_planned_and_then_stalled(bench: Applied, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan and the status say the same; what runs stays as it is."""
    bench.apply()
    bench.edit(source={**bench.spec["source"], "topic": {"partitions": 2}, "key": "shop"})
    code, shown = bench.plan(capsys)
    lines = shown.splitlines()
    assert (code, lines[-1]) == (1, "refused; the accepted spec stays in force")
    assert bench.apply() == {**WELL, "Stalled": "NotSupported"}
    told = "; ".join(line.removeprefix("! ") for line in lines[3:-1])
    assert bench.message("Stalled") == f"{told}; the accepted spec stays in force"
    assert "spec.source.topic.partitions: 2 is less than the 3 partitions" in told
    assert "spec.source.key: changed from none to shop" in told
    assert bench.kafka.observe(TOPICS)[TOPICS[0]].partitions == 3


def test_the_plan_as_data_names_what_was_looked_at(bench: Applied, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the administrator's password."""
    bench.apply()
    code, shown = bench.plan(capsys, "--output", "json")
    told = json.loads(shown)
    assert (code, told["pipelines"][0]["changes"]) == (0, [])
    assert told["observed"] == {"kafka": bench.servers.kafka, "postgres": bench.servers.postgres.public_url}
    assert bench.servers.postgres.password not in shown


def test_a_plan_takes_no_transaction_id(bench: Applied, capsys: pytest.CaptureFixture[str]) -> None:
    """Postgres gives one to whatever writes; housekeeping may take one now and then, but not each time."""

    def next_transaction() -> int:
        with psycopg.connect(bench.servers.postgres.url) as connection:
            row = connection.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint").fetchone()
        assert row is not None
        return int(row[0])

    bench.apply()
    bench.edit(processor={"replicas": 2})
    taken = []
    for _ in range(3):
        before = next_transaction()
        bench.plan(capsys)
        taken.append(next_transaction() - before)
    assert min(taken) == 0


def test_another_resource_of_the_same_name(bench: Applied, capsys: pytest.CaptureFixture[str]) -> None:
    """A conflict until it is adopted; then the topics and windows of before go on."""
    bench.apply()
    first = copy.deepcopy(bench.document)
    bench.document["metadata"] |= {"uid": "uid-2", "generation": 1}
    bench.status = None
    assert bench.apply() == {"Stalled": "ResourceConflict"}
    assert "schema rectest__orders exists and belongs to rectest/orders (uid uid-1" in bench.message("Stalled")
    outcomes = release(bench.document, platform=Platform(), actuators=bench.actuators)
    assert [outcome.message for outcome in outcomes] == ["the schema has another owner"]
    assert bench.there() == (set(TOPICS), True)
    bench.document["metadata"]["annotations"] = {"tidemill.dev/adopt": "true"}
    assert bench.apply() == WELL
    assert release(first, platform=Platform(), actuators=bench.actuators)[0].message == "the schema has another owner"


def test_anothers_results_are_not_taken_and_not_deleted(bench: Applied) -> None:
    """Neither as a topic that is managed, nor by adopting; a topic that was there before its pipeline stays as well."""
    KafkaAdmin(bench.servers.kafka).create("rectest.before", 1)
    bench.apply()
    configs = bench.kafka.configs(TOPICS)
    evil = copy.deepcopy(bench.document)
    evil["metadata"] |= {"name": "evil", "uid": "uid-2"}
    told = []
    for name in ("rectest.orders.results", "rectest.orders.events", "rectest.before"):
        evil["spec"]["source"]["topic"] = {"name": name, "retention": "1m"}
        for adopt in ("false", "true"):
            evil["metadata"]["annotations"] = {"tidemill.dev/adopt": adopt}
            status = reconcile(evil, platform=Platform(), actuators=bench.actuators, previous=None, now=NOON)
            told.append(next(c["reason"] for c in status["conditions"] if c["type"] == "Ready"))
        release(evil, platform=Platform(), actuators=bench.actuators)
    assert told == ["ResourceConflict"] * 4 + ["Applied"] * 2
    assert bench.kafka.configs(TOPICS) == configs
    assert set(bench.kafka.observe([*TOPICS, "rectest.before", "rectest.evil.results"])) == {*TOPICS, "rectest.before"}


def test_a_topic_made_anew_gets_the_partitions_that_were_read(
    bench: Applied, capsys: pytest.CaptureFixture[str]
) -> None:
    """Although the spec names no number and the platform's default is smaller than what the topic had grown to."""
    bench.document["spec"]["source"]["topic"] = {}
    bench.apply()
    KafkaAdmin(bench.servers.kafka).grow(TOPICS[0], 7)
    assert bench.apply() == WELL
    bench.kafka.release([topic for topic in _planned(bench) if topic.name == TOPICS[0]], "Delete")
    assert bench.there()[0] == set(TOPICS[1:])
    assert "+ topic rectest.orders.events (partitions 7, replicationFactor 1)" in bench.plan(capsys)[1]
    assert bench.apply() == WELL
    assert bench.kafka.observe(TOPICS)[TOPICS[0]].partitions == 7


def _planned(bench: Applied) -> Sequence[Any]:
    from tidemill_contract.resource.spec import AnalyticsPipeline
    from tidemill_operator.plan.build import build_plan

    return build_plan(AnalyticsPipeline.model_validate(bench.document), Platform(), 1).topics


def test_a_topic_that_was_read_and_is_gone(bench: Applied, capsys: pytest.CaptureFixture[str]) -> None:
    """Plan and status tell what is lost; it is made anew when the annotation says so."""
    bench.apply()
    was = bench.kafka.observe(TOPICS)[TOPICS[0]].id
    with psycopg.connect(bench.servers.postgres.url) as connection:
        connection.execute(f'UPDATE "{SCHEMA}"._offsets SET topic_id = %s, next_offset = partition + 5', (was,))
    bench.kafka.release([topic for topic in _planned(bench) if topic.name == TOPICS[0]], "Delete")
    told = (
        f"topic rectest.orders.events is gone, and with it every event that was not counted (id {was}; counted up to"
        " offsets 0: 5, 1: 6, 2: 7); create it again with the annotation tidemill.dev/recreate-topics: 'true'; earlier"
        " results are kept"
    )
    code, shown = bench.plan(capsys)
    assert (code, f"! {told}" in shown.splitlines()) == (1, True)
    assert bench.apply()["Stalled"] == "DataLoss"
    assert bench.message("TopicsReady") == told
    assert bench.there()[0] == set(TOPICS[1:])
    bench.document["metadata"]["annotations"] = {"tidemill.dev/recreate-topics": "true"}
    assert bench.apply() == WELL
    assert bench.kafka.observe(TOPICS)[TOPICS[0]].id not in ("", was)


def test_a_topic_that_somebody_made_anew_between_two_passes(bench: Applied) -> None:
    """Its id tells; then what processors note does, for a day."""
    bench.apply()
    was = bench.kafka.observe(TOPICS)[TOPICS[0]].id
    with psycopg.connect(bench.servers.postgres.url, autocommit=True) as connection:
        connection.execute(f'UPDATE "{SCHEMA}"._offsets SET topic_id = %s, next_offset = partition + 5', (was,))
        source = [topic for topic in _planned(bench) if topic.name == TOPICS[0]]
        bench.kafka.release(source, "Delete")
        bench.kafka.ensure(source)
        now = bench.kafka.observe(TOPICS)[TOPICS[0]].id
        assert bench.apply() == {**WELL, "EventsLost": "TopicRecreated"}
        assert f"(id {now} now)" in bench.message("EventsLost")
        assert "from offsets 0: 5, 1: 6, 2: 7);" in bench.message("EventsLost")
        told = bench.message("EventsLost")
        connection.execute(
            f'INSERT INTO "{SCHEMA}"._lost (reader, partition, epoch, from_offset, reason)'
            f" SELECT reader, partition, epoch, next_offset, 'topic_recreated' FROM \"{SCHEMA}\"._offsets"
        )
        connection.execute(f'UPDATE "{SCHEMA}"._offsets SET topic_id = %s, epoch = 1, next_offset = 0', (now,))
        assert bench.apply() == {**WELL, "EventsLost": "TopicRecreated"}
        assert bench.message("EventsLost") == told
        connection.execute(f"UPDATE \"{SCHEMA}\"._lost SET noticed_at = noticed_at - interval '1 day'")
        assert bench.apply() == WELL


def test_retained_topics_and_schema_outlive_their_resource(bench: Applied) -> None:
    """And are taken up again by the same resource."""
    bench.edit(reclaimPolicy="Retain")
    bench.apply()
    release(bench.document, platform=Platform(), actuators=bench.actuators)
    assert bench.there() == (set(TOPICS), True)
    assert bench.apply() == WELL


GONE: list[tuple[str, str, str]] = [
    (
        "DROP TABLE {s}.by_shop_v1",
        "table by_shop_v1 is gone, and with it the windows of aggregation by_shop",
        "a window table that was dropped",
    ),
    (
        "ALTER TABLE {s}.by_shop_v1 DROP COLUMN _count",
        "table by_shop_v1 has lost its column _count, and with it values of aggregation by_shop",
        "a column that was dropped",
    ),
    ("DROP TABLE {s}._offsets", "table _offsets is gone, and with it the positions up to which events", "positions"),
    ("TRUNCATE {s}._offsets", "rows of table _offsets are gone (partitions 0), and with them", "positions emptied"),
    (
        "DELETE FROM {s}._offsets WHERE partition = 1",
        "rows of table _offsets are gone (partitions 1), and with them",
        "one position",
    ),
    (
        "DROP TABLE {s}._aggregations",
        "table _aggregations is gone, and with it the versions of aggregations",
        "versions",
    ),
    ("TRUNCATE {s}._aggregations", "rows of table _aggregations are gone, and with them the versions", "no versions"),
    ("DROP TABLE {s}._dead_letters", "table _dead_letters is gone, and with it the dead letters", "dead letters"),
]


@pytest.mark.parametrize(("harm", "told", "what"), GONE, ids=[what for *_, what in GONE])
def test_tables_that_somebody_takes_away_are_lost_data(
    bench: Applied, capsys: pytest.CaptureFixture[str], harm: str, told: str, what: str
) -> None:
    """Told by status and plan, never ready over it, not made anew until the annotation says so."""
    bench.apply()
    with psycopg.connect(bench.servers.postgres.url, autocommit=True) as connection:
        connection.execute(harm.format(s=f'"{SCHEMA}"'))
    for _ in range(2):
        found = bench.apply()
        assert (found["Stalled"], "Ready" in found) == ("DataLoss", False), what
    assert bench.message("SchemaReady").startswith(f"schema {SCHEMA}: {told}"), what
    assert "set the annotation tidemill.dev/recreate-topics: 'true' to start without the data" in bench.message("Ready")
    code, shown = bench.plan(capsys)
    assert (code, f"! {bench.message('SchemaReady')}" in shown.splitlines()) == (1, True), what
    bench.document["metadata"]["annotations"] = {"tidemill.dev/recreate-topics": "true"}
    assert bench.apply() == WELL, what
    del bench.document["metadata"]["annotations"]
    assert bench.apply() == WELL, what


def test_a_window_table_that_was_emptied_is_lost_data(bench: Applied) -> None:
    """As long as it is empty: batches were merged into it. What expired, or never came, is no loss."""
    bench.apply()
    table = f'"{SCHEMA}".by_shop_v1'
    with psycopg.connect(bench.servers.postgres.url, autocommit=True) as connection:
        connection.execute(f"SELECT \"{SCHEMA}\".ensure_partitions('by_shop_v1', ARRAY[20000], ARRAY[1])")
        assert bench.apply() == WELL
        connection.execute(
            f"INSERT INTO {table} (shop, window_start, _rev) VALUES ('a', to_timestamp(20000 * 86400), 1)"
        )
        connection.execute(f'UPDATE "{SCHEMA}"._aggregations SET rev = 1')
        assert bench.apply() == WELL
        connection.execute(f"TRUNCATE {table}")
        assert bench.apply()["Stalled"] == "DataLoss"
        assert "table by_shop_v1 was emptied, and the windows of aggregation by_shop are gone" in bench.message("Ready")


def test_a_replay_fills_what_somebody_dropped(bench: Applied) -> None:
    """The next version is made, and the table that is fed until then."""
    bench.apply()
    with psycopg.connect(bench.servers.postgres.url, autocommit=True) as connection:
        connection.execute(f'DROP TABLE "{SCHEMA}".by_shop_v1')
    assert bench.apply()["Stalled"] == "DataLoss"
    assert "or count the windows again from the topic with `tidemill replay`" in bench.message("Ready")
    bench.document["metadata"]["annotations"] = {"tidemill.dev/replay": json.dumps({"aggregations": ["by_shop"]})}
    assert "Stalled" not in bench.apply()
    live = bench.actuators.postgres.observe(SCHEMA)
    assert live is not None
    assert {"by_shop_v1", "by_shop_v2"} <= live.columns.keys()


def test_how_far_partitions_are_is_told_at_each_look(bench: Applied) -> None:
    """Nothing waits in a schema that is not there; servers that do not answer are told for each pipeline."""
    bench.apply()
    found = _looked(bench.servers.kafka, bench.servers.postgres)
    assert found == {"orders": {partition: Progress(0, (None, None)) for partition in range(3)}, "nothing": {}}
    producer = Producer({"bootstrap.servers": bench.servers.kafka})
    for _ in range(2):
        producer.produce(TOPICS[0], b"{}", partition=1)
    assert producer.flush(30) == 0
    with psycopg.connect(bench.servers.postgres.url, autocommit=True) as connection:
        connection.execute(f'UPDATE "{SCHEMA}"._offsets SET next_offset = 1 WHERE partition = 1')
        connection.execute(f'UPDATE "{SCHEMA}"._offsets SET end_confirmed_at = to_timestamp(7) WHERE partition = 2')
    look = _looked(bench.servers.kafka, bench.servers.postgres)["orders"]
    assert look == {0: Progress(0, (None, None)), 1: Progress(1, (1, None)), 2: Progress(0, (None, 7000))}
    for server, looks in (
        ("Postgres", _looked(bench.servers.kafka, replace(bench.servers.postgres, port=1))),
        ("Kafka", _looked("127.0.0.1:1", bench.servers.postgres)),
    ):
        away = looks["orders"]
        assert isinstance(away, TidemillError), server
        assert away.reason == Reason.UNREACHABLE, server


def _looked(kafka: str, postgres: PostgresAddress) -> dict[str, Look]:
    """What an observer tells at one look, of a pipeline and of one whose schema is not there."""
    found: dict[str, Look] = {}

    def tell(key: Key, _schema: str, _topic: str, look: Look) -> None:
        found[key.name] = look

    observer = Observer(KafkaLog(kafka, timeout_seconds=KAFKA_SECONDS), postgres, lambda *_: None, progress=tell)
    observer.watch(Key("rectest", "orders", "uid-1"), SCHEMA, TOPICS[0])
    observer.watch(Key("rectest", "nothing", "uid-2"), "rectest__nothing", "rectest.nothing.events")
    observer.look()
    return found


def test_what_is_retained_is_listed_and_removed(bench: Applied, capsys: pytest.CaptureFixture[str]) -> None:
    """Of pipelines that are not there; topics, schema and roles go on request."""
    bench.edit(reclaimPolicy="Retain")
    bench.apply()
    release(bench.document, platform=Platform(), actuators=bench.actuators)
    arguments = ["status", "--retained", "--data-dir", str(bench.folder)]
    assert main(arguments) == 1
    assert "the existing pipelines are unknown" in capsys.readouterr().err
    running = {"pid": os.getpid(), "started": start_time(os.getpid()), "servers": {}}
    addresses = {"kafka": bench.servers.kafka, "postgres": bench.servers.postgres.public_url}
    (bench.folder / "status.json").write_text(json.dumps({**running, "addresses": addresses}))
    assert main([*arguments, "--output", "json"]) == 0
    found = {one["schema"]: one for one in json.loads(capsys.readouterr().out)}
    assert (found[SCHEMA]["topics"], found[SCHEMA]["owner"]["uid"]) == (sorted(TOPICS), "uid-1")
    assert found[SCHEMA]["roles"] == [f"{SCHEMA}_owner", f"{SCHEMA}_writer", f"{SCHEMA}_reader"]
    assert main([*arguments, "--remove", "rectest/orders"]) == 0
    assert bench.there() == (set(), False)
    assert main([*arguments, "--remove", "rectest/orders"]) == 1
    assert "there is no retained data" in capsys.readouterr().err
