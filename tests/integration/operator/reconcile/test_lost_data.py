"""Tests of how reconcile() and `tidemill plan` report lost topics and tables, on a real Kafka and Postgres."""

from __future__ import annotations

import json

import psycopg
import pytest

from kafka_admin import KafkaAdmin
from pipelines.applied_pipeline import SCHEMA, TOPICS, WELL, AppliedPipeline, planned_topics

pytestmark = pytest.mark.integration


def test_a_recreated_topic_gets_as_many_partitions_as_were_read(
    bench: AppliedPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    """The spec names no number, and the platform's default is smaller than the number read."""
    bench.document["spec"]["source"]["topic"] = {}
    bench.apply()
    KafkaAdmin(bench.servers.kafka).grow(TOPICS[0], 7)
    assert bench.apply() == WELL
    bench.kafka.release([topic for topic in planned_topics(bench) if topic.name == TOPICS[0]], "Delete")
    assert bench.existing()[0] == set(TOPICS[1:])
    assert "+ topic rectest.orders.events (partitions 7, replicationFactor 1)" in bench.plan(capsys)[1]
    assert bench.apply() == WELL
    assert bench.kafka.observe(TOPICS)[TOPICS[0]].partitions == 7


def test_a_deleted_topic_with_read_events_is_created_again_only_with_the_annotation(
    bench: AppliedPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plan and status report which events are lost."""
    bench.apply()
    was = bench.kafka.observe(TOPICS)[TOPICS[0]].id
    with psycopg.connect(bench.servers.postgres.url) as connection:
        connection.execute(f'UPDATE "{SCHEMA}"._offsets SET topic_id = %s, next_offset = partition + 5', (was,))
    bench.kafka.release([topic for topic in planned_topics(bench) if topic.name == TOPICS[0]], "Delete")
    loss = (
        f"topic rectest.orders.events is gone, and with it every event that was not counted (id {was}; counted up to"
        " offsets 0: 5, 1: 6, 2: 7); create it again with the annotation tidemill.dev/recreate-topics: 'true'; earlier"
        " results are kept"
    )
    code, shown = bench.plan(capsys)
    assert (code, f"! {loss}" in shown.splitlines()) == (1, True)
    assert bench.apply()["Stalled"] == "DataLoss"
    assert bench.message("TopicsReady") == loss
    assert bench.existing()[0] == set(TOPICS[1:])
    bench.document["metadata"]["annotations"] = {"tidemill.dev/recreate-topics": "true"}
    assert bench.apply() == WELL
    assert bench.kafka.observe(TOPICS)[TOPICS[0]].id not in ("", was)


def test_a_topic_that_was_recreated_between_two_passes_is_reported_for_a_day(bench: AppliedPipeline) -> None:
    """The first pass compares the topic's id. Later passes read the losses that processors recorded."""
    bench.apply()
    was = bench.kafka.observe(TOPICS)[TOPICS[0]].id
    with psycopg.connect(bench.servers.postgres.url, autocommit=True) as connection:
        connection.execute(f'UPDATE "{SCHEMA}"._offsets SET topic_id = %s, next_offset = partition + 5', (was,))
        source = [topic for topic in planned_topics(bench) if topic.name == TOPICS[0]]
        bench.kafka.release(source, "Delete")
        bench.kafka.ensure(source)
        now = bench.kafka.observe(TOPICS)[TOPICS[0]].id
        assert bench.apply() == {**WELL, "EventsLost": "TopicRecreated"}
        assert f"(id {now} now)" in bench.message("EventsLost")
        assert "from offsets 0: 5, 1: 6, 2: 7);" in bench.message("EventsLost")
        message = bench.message("EventsLost")
        connection.execute(
            f'INSERT INTO "{SCHEMA}"._lost (reader, partition, epoch, from_offset, reason)'
            f" SELECT reader, partition, epoch, next_offset, 'topic_recreated' FROM \"{SCHEMA}\"._offsets"
        )
        connection.execute(f'UPDATE "{SCHEMA}"._offsets SET topic_id = %s, epoch = 1, next_offset = 0', (now,))
        assert bench.apply() == {**WELL, "EventsLost": "TopicRecreated"}
        assert bench.message("EventsLost") == message
        connection.execute(f"UPDATE \"{SCHEMA}\"._lost SET noticed_at = noticed_at - interval '1 day'")
        assert bench.apply() == WELL


LOSSES: list[tuple[str, str, str]] = [
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


@pytest.mark.parametrize(("damage", "loss", "what"), LOSSES, ids=[what for *_, what in LOSSES])
def test_a_pipeline_without_its_rows_or_tables_stalls_until_the_annotation_is_set(
    bench: AppliedPipeline, capsys: pytest.CaptureFixture[str], damage: str, loss: str, what: str
) -> None:
    """Status and plan report the loss. With the annotation, the next pass creates the tables again."""
    bench.apply()
    with psycopg.connect(bench.servers.postgres.url, autocommit=True) as connection:
        connection.execute(damage.format(s=f'"{SCHEMA}"'))
    for _ in range(2):
        reasons = bench.apply()
        assert (reasons["Stalled"], "Ready" in reasons) == ("DataLoss", False), what
    assert bench.message("SchemaReady").startswith(f"schema {SCHEMA}: {loss}"), what
    assert "set the annotation tidemill.dev/recreate-topics: 'true' to start without the data" in bench.message("Ready")
    code, shown = bench.plan(capsys)
    assert (code, f"! {bench.message('SchemaReady')}" in shown.splitlines()) == (1, True), what
    bench.document["metadata"]["annotations"] = {"tidemill.dev/recreate-topics": "true"}
    assert bench.apply() == WELL, what
    del bench.document["metadata"]["annotations"]
    assert bench.apply() == WELL, what


def test_an_emptied_window_table_is_lost_data_if_batches_were_merged_into_it(bench: AppliedPipeline) -> None:
    """A table that never had rows, or whose rows expired, has lost nothing."""
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


def test_a_replay_fills_a_window_table_that_was_dropped(bench: AppliedPipeline) -> None:
    """The pass creates the next version, and the dropped table, which answers queries until then."""
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
