"""A pipeline's schema on a real Postgres: made whole, made once, repaired, never altered beyond adding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from pipelines.owned_schema import OwnedSchema
from tidemill_contract.resource.documents import load_documents
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.actuators.postgres.session import connected
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.laptop.servers import PostgresAddress, Servers
from tidemill_operator.observer import writes
from tidemill_operator.outcome import Rank
from tidemill_operator.plan.live import Owner
from tidemill_operator.plan.postgres.sql import script

pytestmark = pytest.mark.integration


def next_transaction(bench: OwnedSchema) -> int:
    """The first transaction id that was not given away yet."""
    ((number,),) = bench.query("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
    return int(number)


def test_a_second_ensure_writes_nothing(bench: OwnedSchema) -> None:
    """Everything is made by the first call, and the second finds nothing to do."""
    first = bench.ensure()
    assert first.rank == Rank.DONE, first
    assert first.changed > 40
    transactions = []
    for _ in range(3):
        before = next_transaction(bench)
        again = bench.ensure()
        assert (again.rank, again.changed) == (Rank.DONE, 0)
        transactions.append(next_transaction(bench) - before)
    # Whatever writes takes a transaction id. Postgres' own housekeeping may take one now and then, but not each time.
    assert min(transactions) == 0


def test_the_schema_is_what_the_processor_needs(bench: OwnedSchema) -> None:
    """Rows of offsets, reader, aggregations and generation are there, and partitions of windows can be made."""
    bench.ensure()
    assert bench.query("SELECT reader, partition FROM {s}._offsets ORDER BY partition") == [
        ("live", 0),
        ("live", 1),
        ("live", 2),
    ]
    assert bench.query("SELECT reader, watermark FROM {s}._readers") == [("live", None)]
    assert bench.query("SELECT name, version, table_name, partition_days FROM {s}._aggregations") == [
        ("by_shop", 1, "by_shop_v1", 1)
    ]
    assert bench.query("SELECT generation, accepted -> 'aggregations' -> 0 ->> 'name' FROM {s}._generation") == [
        (1, "by_shop")
    ]
    with bench.login("writer") as writer:
        call = sql.SQL("SELECT {}.ensure_partition('by_shop_v1', 19000, 1)").format(
            sql.Identifier(bench.plan.schema.name)
        )
        assert writer.execute(call).fetchone() == (True,)
        assert writer.execute(call).fetchone() == (False,)
    owners = bench.query(
        "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relnamespace = (SELECT oid FROM pg_namespace"
        " WHERE nspname = 'pgtest__orders')"
    )
    assert owners == [("pgtest__orders_owner",)]


DRIFT = [
    ("DROP INDEX {s}._dead_letters_by_time", "an index that was dropped"),
    ("DROP TABLE {s}._lost", "a table that was dropped"),
    ("ALTER TABLE {s}._anomalies DROP COLUMN lower", "a column that was dropped"),
    ("REVOKE INSERT ON {s}._dead_letters FROM {writer}", "a grant that was taken back"),
    ("REVOKE UPDATE (rev) ON {s}._aggregations FROM {writer}", "a grant on a column that was taken back"),
    ("GRANT DELETE ON {s}._offsets TO {writer}", "a right that was given besides"),
    ("GRANT SELECT ON {s}._offsets TO PUBLIC", "everybody may read"),
    ("GRANT CREATE ON SCHEMA {s} TO {writer}", "the writer may make tables"),
    ("GRANT EXECUTE ON FUNCTION {s}.ensure_partition TO PUBLIC", "everybody may make partitions"),
    ("ALTER ROLE {writer_a} PASSWORD 'another'", "the password was changed"),
    ("ALTER ROLE {writer_a} RESET idle_in_transaction_session_timeout", "a lost node's locks would stay"),
    ("ALTER ROLE {reader_a} NOLOGIN", "the reader cannot log in"),
    ("REVOKE {writer} FROM {writer_a}", "the login has no rights"),
    ("GRANT DELETE ON {s}._generation TO {writer_a}", "a login has rights of its own"),
    ("ALTER ROLE {reader} LOGIN PASSWORD 'another'", "one may log in as the role that has the rights"),
    ("ALTER ROLE {reader} CREATEDB", "the reader was given power"),
    ("DELETE FROM {s}._offsets WHERE partition = 1", "a row of offsets is missing"),
    ("UPDATE {s}._generation SET generation = 0", "the generation was set back"),
    ("UPDATE {s}._aggregations SET retention_ms = 1", "the retention was changed"),
    (
        "CREATE OR REPLACE FUNCTION {s}.ensure_partition(table_name text, day integer, days integer) RETURNS boolean"
        " LANGUAGE sql AS 'SELECT true'",
        "the function was replaced",
    ),
]


@pytest.mark.parametrize(("damage", "reason"), DRIFT, ids=[reason for _, reason in DRIFT])
def test_drift_is_repaired_once(bench: OwnedSchema, damage: str, reason: str) -> None:
    """What somebody damaged is as it was after the next call, and then there is nothing left to do."""
    bench.ensure()
    bench.run(damage)
    repaired = bench.ensure()
    assert repaired.rank == Rank.DONE, (reason, repaired)
    assert repaired.changed > 0, reason
    assert bench.ensure().changed == 0, reason


def test_what_others_were_granted_stays(bench: OwnedSchema) -> None:
    """A dashboard's own role keeps what an administrator gave it."""
    bench.ensure()
    bench.admin.execute("DROP ROLE IF EXISTS tidemill_guest")
    bench.admin.execute("CREATE ROLE tidemill_guest")
    try:
        bench.run("GRANT SELECT ON {s}._offsets TO tidemill_guest")
        assert bench.ensure().changed == 0
        assert bench.query("SELECT has_table_privilege('tidemill_guest', '{s}._offsets', 'SELECT')") == [(True,)]
    finally:
        bench.admin.execute("DROP OWNED BY tidemill_guest; DROP ROLE tidemill_guest")


FORMER_KEYS = {
    "_events": 'PRIMARY KEY (event_time, epoch, partition, "offset")',
    "_dead_letters": 'PRIMARY KEY (epoch, partition, "offset", aggregation)',
    "_anomalies": (
        "UNIQUE NULLS NOT DISTINCT (anomaly, aggregation, version, group_key, window_start, revision, epoch, partition,"
        ' "offset")'
    ),
}
INSERTS = {
    "_events": "(event_time, epoch, partition, \"offset\", data) VALUES ('2022-01-08T01:00Z', 0, 0, 7, '{{}}')",
    "_dead_letters": "(epoch, partition, \"offset\", reason) VALUES (0, 0, 7, 'late')",
    "_anomalies": (
        "(anomaly, aggregation, version, metric, group_key, window_start, window_end, value, score)"
        " VALUES ('a', '', 0, 'm', '{{}}', now(), now(), 1, 1)"
    ),
}


def keys(bench: OwnedSchema) -> dict[str, bool]:
    """Whether the keys of tables have the place in an array."""
    rows = bench.query(
        "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE connamespace = 'pgtest__orders'::regnamespace AND contype IN ('p', 'u') AND conparentid = 0"
    )
    found = {name.rpartition(".")[2]: key for name, key in rows if "epoch" in key}
    return {name: "element" in found[name] for name in FORMER_KEYS}


def test_keys_of_an_earlier_version_get_wider_where_an_array_is_exploded(bench: OwnedSchema) -> None:
    """Before that they stay as they are, with the rows in the tables; afterwards as well."""
    bench.document["spec"]["events"] = {"store": True}
    bench.ensure()
    assert set(keys(bench).values()) == {True}
    bench.run("SELECT {s}.ensure_partition('_events', 19000, 1)")
    for table, key in FORMER_KEYS.items():
        bench.run(f"ALTER TABLE {{s}}.{table} DROP COLUMN element, ADD {key}")
        bench.run(f"INSERT INTO {{s}}.{table} {INSERTS[table]}")
    assert bench.ensure().changed > 0
    assert set(keys(bench).values()) == {False}
    assert bench.ensure().changed == 0
    bench.document["spec"]["source"]["fields"].append({"name": "sku", "type": "string", "path": "items[].sku"})
    bench.document["metadata"]["generation"] = 2
    assert bench.ensure().rank == Rank.DONE
    assert set(keys(bench).values()) == {True}
    assert bench.ensure().changed == 0
    for table in ("_events", "_dead_letters"):
        columns, _, values = INSERTS[table].partition(" VALUES ")
        bench.run(f"INSERT INTO {{s}}.{table} {columns[:-1]}, element) VALUES {values[:-1]}, 3)")
        assert bench.query(f"SELECT element FROM {{s}}.{table} ORDER BY 1") == [(-1,), (3,)]


def test_a_new_metric_only_adds_columns(bench: OwnedSchema) -> None:
    """Windows already stored stay as they are; the new partial is null for them, and its metric will be."""
    bench.ensure()
    bench.run("SELECT {s}.ensure_partition('by_shop_v1', 19000, 1)")
    bench.run("INSERT INTO {s}.by_shop_v1 (shop, window_start, _rev, _count) VALUES ('a', '2022-01-08T01:00Z', 1, 7)")
    bench.document["spec"]["aggregations"][0]["metrics"].append({"name": "sales", "function": "sum", "field": "amount"})
    bench.document["metadata"]["generation"] = 2
    grown = bench.ensure()
    assert grown.rank == Rank.DONE, grown
    # The column, its row in `_aggregations`, and `_generation`.
    assert grown.changed == 3
    assert bench.query("SELECT shop, _count, _since, _sum_amount FROM {s}.by_shop_v1") == [("a", 7, 0, None)]
    fed = bench.query("SELECT layout, fed FROM {s}._aggregations")
    assert fed == [(1, {"_sum_amount": {"since": 1, "before": []}})]
    assert bench.query("SELECT generation FROM {s}._generation") == [(2,)]
    assert bench.ensure().changed == 0


def test_a_column_that_somebody_dropped_comes_back_empty(bench: OwnedSchema) -> None:
    """What it held is lost, so its metric is null for all windows until then; the others are as they were."""
    bench.document["spec"]["aggregations"][0]["metrics"].append({"name": "sales", "function": "sum", "field": "amount"})
    bench.ensure()
    bench.run("ALTER TABLE {s}.by_shop_v1 DROP COLUMN _sum_amount")
    assert bench.ensure().changed == 2
    fed = bench.query("SELECT layout, fed FROM {s}._aggregations")
    assert fed == [(1, {"_sum_amount": {"since": 1, "before": []}})]
    assert bench.ensure().changed == 0


def test_more_partitions_get_their_rows(bench: OwnedSchema) -> None:
    """Growing adds rows for the new partitions, read from 0, and leaves the positions of the old ones alone."""
    bench.ensure()
    bench.run("UPDATE {s}._offsets SET next_offset = 42")
    bench.document["spec"]["source"]["topic"]["partitions"] = 5
    assert bench.ensure().changed == 3
    assert bench.query("SELECT partition, next_offset FROM {s}._offsets ORDER BY partition") == [
        (0, 42),
        (1, 42),
        (2, 42),
        (3, 0),
        (4, 0),
    ]


def test_another_column_type_is_refused(bench: OwnedSchema) -> None:
    """A group column cannot turn from text into a number; nothing is changed then."""
    bench.ensure()
    bench.document["spec"]["source"]["fields"][1]["type"] = "integer"
    bench.document["metadata"]["generation"] = 2
    refused = bench.ensure()
    assert (refused.rank, refused.reason) == (Rank.FAILED, Reason.NOT_SUPPORTED)
    assert "column shop of table by_shop_v1 has the type text instead of bigint" in refused.message
    assert bench.query("SELECT generation FROM {s}._generation") == [(1,)]


def test_a_foreign_owner_is_a_conflict_until_adopted(bench: OwnedSchema) -> None:
    """Another resource of the same name does not get the schema unless it says so; generations then count anew."""
    bench.document["metadata"]["generation"] = 7
    bench.ensure()
    bench.document["metadata"] |= {"uid": "uid-2", "generation": 1}
    refused = bench.ensure()
    assert (refused.rank, refused.reason) == (Rank.FAILED, Reason.RESOURCE_CONFLICT)
    assert "uid uid-1" in refused.message
    assert bench.ensure(adopt=True).rank == Rank.DONE
    assert bench.query("SELECT generation FROM {s}._generation") == [(1,)]
    assert bench.ensure().changed == 0


def test_a_schema_of_somebody_else_is_a_conflict(bench: OwnedSchema) -> None:
    """A schema that does not say whose it is was not made by us."""
    bench.run("CREATE SCHEMA {s}")
    refused = bench.ensure()
    assert (refused.rank, refused.reason) == (Rank.FAILED, Reason.RESOURCE_CONFLICT)
    assert "names no owner" in refused.message
    bench.run("DROP SCHEMA {s}")


def test_release_follows_the_reclaim_policy(bench: OwnedSchema) -> None:
    """Retain leaves all; Delete drops schema and roles, also with many partitions; a second time is nothing."""
    bench.ensure()
    for day in range(19_000, 19_060):
        bench.run(f"SELECT {{s}}.ensure_partition('by_shop_v1', {day}, 1)")
    schema, owner = bench.plan.schema, bench.owner
    (kept,) = bench.actuator.release(schema, owner=owner, reclaim="Retain")
    assert (kept.rank, kept.changed) == (Rank.SKIPPED, 0)
    assert bench.actuator.observe(schema.name) is not None
    stranger = Owner("pgtest", "orders", "uid-9", "local")
    (refused,) = bench.actuator.release(schema, owner=stranger, reclaim="Delete")
    assert refused.reason == Reason.RESOURCE_CONFLICT
    (gone,) = bench.actuator.release(schema, owner=owner, reclaim="Delete")
    assert gone.rank == Rank.DONE
    assert bench.actuator.observe(schema.name) is None
    assert bench.query("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'pgtest\\_\\_orders%'") == [(0,)]
    (again,) = bench.actuator.release(schema, owner=owner, reclaim="Delete")
    assert (again.rank, again.changed) == (Rank.DONE, 0)


def test_a_busy_table_means_waiting(bench: OwnedSchema) -> None:
    """DDL gives up after its lock timeout and says so; nothing of the pass remains."""
    bench.ensure()
    bench.document["spec"]["aggregations"][0]["metrics"].append({"name": "top", "function": "max", "field": "amount"})
    with bench.login("writer") as writer, writer.transaction():
        writer.execute("SELECT * FROM pgtest__orders.by_shop_v1")
        waits = bench.ensure()
        assert (waits.rank, waits.reason) == (Rank.WAITING, Reason.WAITING)
        assert "a lock was not free" in waits.message
    assert bench.ensure().rank == Rank.DONE


def test_nobody_answers(bench: OwnedSchema, unused_port: Callable[[], int]) -> None:
    """An address without a server is Unreachable, and the message names it without the password."""
    nowhere = PostgresAddress("127.0.0.1", unused_port(), "tidemill", "admin", "s3cret")
    with pytest.raises(TidemillError) as raised:
        PostgresSchemas(nowhere).observe("a__b")
    assert raised.value.reason == Reason.UNREACHABLE
    assert f"127.0.0.1:{nowhere.port}/tidemill" in str(raised.value)
    assert "s3cret" not in str(raised.value)


@pytest.fixture
def unused_port() -> Callable[[], int]:
    import socket

    def port() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return port


def test_the_database_is_made_if_missing(servers: Servers) -> None:
    """A database that is not there yet is made by the first look."""
    at = servers.postgres
    other = PostgresAddress(at.host, at.port, "tidemill_new", at.user, at.password)
    assert PostgresSchemas(other).observe("a__b") is None
    with psycopg.connect(other.url, autocommit=True) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == ("tidemill_new",)
    with psycopg.connect(at.url, autocommit=True) as connection:
        connection.execute("DROP DATABASE tidemill_new")


def test_only_looking_makes_no_database(servers: Servers) -> None:
    """For a plan, a database that is missing holds nothing and stays missing."""
    at = servers.postgres
    other = PostgresAddress(at.host, at.port, "tidemill_none", at.user, at.password)
    assert PostgresSchemas(other, read_only=True).observe("a__b") is None
    with psycopg.connect(at.url, autocommit=True) as connection:
        rows = connection.execute("SELECT count(*) FROM pg_database WHERE datname = 'tidemill_none'").fetchall()
    assert rows == [(0,)]


def test_only_looking_sees_the_same_and_cannot_write(bench: OwnedSchema) -> None:
    """Postgres itself refuses what such an actuator would write."""
    bench.ensure()
    looking = PostgresSchemas(bench.servers.postgres, read_only=True)
    assert looking.observe(bench.plan.schema.name) == bench.actuator.observe(bench.plan.schema.name)
    with (
        pytest.raises(TidemillError, match="read-only transaction"),
        connected(bench.servers.postgres, "looking", read_only=True) as session,
    ):
        session.write("CREATE SCHEMA mine")


EXAMPLES = sorted((Path(__file__).parents[3] / "crds" / "examples").glob("*.yaml"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_the_script_of_a_schema_is_what_ensure_makes(servers: Servers, tmp_path: Path, example: Path) -> None:
    """The SQL that golden files show runs as it stands; what is left for ensure is to say whose the schema is."""
    (document,) = load_documents(example.read_text())
    document["metadata"] |= {"uid": "uid-1", "generation": 1}
    made = OwnedSchema(servers, tmp_path, document)
    try:
        assert made.ensure().rank == Rank.DONE
        by_ensure = made.actuator.observe(made.plan.schema.name)
        made.run("DROP SCHEMA {s} CASCADE")
        made.admin.execute(sql.SQL(script(made.plan.schema)))
        adopted = made.ensure(adopt=True)
        # The schema's mark, the topic that its positions are in, and the spec in `_generation`.
        assert (adopted.rank, adopted.changed) == (Rank.DONE, 3)
        assert made.actuator.observe(made.plan.schema.name) == by_ensure
    finally:
        made.clean()


def test_a_postgres_that_refuses_to_write_says_why_and_one_that_writes_keeps_nothing(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a standby refuses; a temporary table of the check is gone with its session."""
    assert writes.refusal_of(servers.postgres) == ""
    with connected(servers.postgres, "looking") as session:
        assert session.rows("SELECT FROM pg_class WHERE relname = 'tidemill_probe'") == []
    monkeypatch.setattr(writes, "_WRITE", f"SET TRANSACTION READ ONLY; {writes._WRITE}")
    assert "cannot execute CREATE TABLE AS in a read-only transaction" in writes.refusal_of(servers.postgres)
