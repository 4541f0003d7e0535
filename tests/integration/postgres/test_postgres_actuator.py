"""Tests of the actuator that creates, repairs, extends and deletes a pipeline's schema, on a real Postgres."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from pipelines.owned_schema import OwnedSchema
from tidemill_contract.resource.documents import load_documents
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.actuators.postgres.session import open_session
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.laptop.servers import PostgresAddress, Servers
from tidemill_operator.observer import write_check
from tidemill_operator.outcome import Rank
from tidemill_operator.plan.live import Owner
from tidemill_operator.plan.postgres.sql import script

pytestmark = pytest.mark.integration


def next_transaction(bench: OwnedSchema) -> int:
    """Return the next transaction id that Postgres will assign."""
    ((number,),) = bench.query("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
    return int(number)


def test_a_second_ensure_writes_nothing(bench: OwnedSchema) -> None:
    """The second call takes no transaction id."""
    first = bench.ensure()
    assert first.rank == Rank.DONE, first
    assert first.changed > 40
    transactions = []
    for _ in range(3):
        before = next_transaction(bench)
        again = bench.ensure()
        assert (again.rank, again.changed) == (Rank.DONE, 0)
        transactions.append(next_transaction(bench) - before)
    # Each session that writes takes a transaction id. Postgres itself takes one at times, but not each time.
    assert min(transactions) == 0


def test_ensure_creates_the_rows_and_functions_that_the_processor_needs(bench: OwnedSchema) -> None:
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
    ("REVOKE INSERT ON {s}._dead_letters FROM {writer}", "a grant that was revoked"),
    ("REVOKE UPDATE (rev) ON {s}._aggregations FROM {writer}", "a grant on a column that was revoked"),
    ("GRANT DELETE ON {s}._offsets TO {writer}", "a grant that was added"),
    ("GRANT SELECT ON {s}._offsets TO PUBLIC", "everybody can read"),
    ("GRANT CREATE ON SCHEMA {s} TO {writer}", "the writer can create tables"),
    ("GRANT EXECUTE ON FUNCTION {s}.ensure_partition TO PUBLIC", "everybody can create partitions"),
    ("ALTER ROLE {writer_a} PASSWORD 'another'", "the password was changed"),
    (
        "ALTER ROLE {writer_a} RESET idle_in_transaction_session_timeout",
        "the writer has no timeout for idle transactions",
    ),
    ("ALTER ROLE {reader_a} NOLOGIN", "the reader cannot log in"),
    ("REVOKE {writer} FROM {writer_a}", "the login has no role"),
    ("GRANT DELETE ON {s}._generation TO {writer_a}", "a login has a grant"),
    ("ALTER ROLE {reader} LOGIN PASSWORD 'another'", "the role with the grants can log in"),
    ("ALTER ROLE {reader} CREATEDB", "the reader can create databases"),
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
def test_ensure_repairs_drift_in_one_call(bench: OwnedSchema, damage: str, reason: str) -> None:
    bench.ensure()
    bench.run(damage)
    repaired = bench.ensure()
    assert repaired.rank == Rank.DONE, (reason, repaired)
    assert repaired.changed > 0, reason
    assert bench.ensure().changed == 0, reason


def test_ensure_keeps_grants_to_other_roles(bench: OwnedSchema) -> None:
    """An administrator may grant rights to the role of a dashboard."""
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
    """Return for each table whether its key has the column `element`, the index in an exploded array."""
    rows = bench.query(
        "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE connamespace = 'pgtest__orders'::regnamespace AND contype IN ('p', 'u') AND conparentid = 0"
    )
    definitions = {name.rpartition(".")[2]: key for name, key in rows if "epoch" in key}
    return {name: "element" in definitions[name] for name in FORMER_KEYS}


def test_keys_of_an_earlier_version_are_extended_when_a_spec_explodes_an_array(bench: OwnedSchema) -> None:
    """The tables keep their rows. Without such a spec the keys stay as they are."""
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
    """Stored windows keep their values, and their new column is null."""
    bench.ensure()
    bench.run("SELECT {s}.ensure_partition('by_shop_v1', 19000, 1)")
    bench.run("INSERT INTO {s}.by_shop_v1 (shop, window_start, _rev, _count) VALUES ('a', '2022-01-08T01:00Z', 1, 7)")
    bench.document["spec"]["aggregations"][0]["metrics"].append({"name": "sales", "function": "sum", "field": "amount"})
    bench.document["metadata"]["generation"] = 2
    grown = bench.ensure()
    assert grown.rank == Rank.DONE, grown
    # The changes are the column, its row in `_aggregations`, and `_generation`.
    assert grown.changed == 3
    assert bench.query("SELECT shop, _count, _since, _sum_amount FROM {s}.by_shop_v1") == [("a", 7, 0, None)]
    fed = bench.query("SELECT layout, fed FROM {s}._aggregations")
    assert fed == [(1, {"_sum_amount": {"since": 1, "before": []}})]
    assert bench.query("SELECT generation FROM {s}._generation") == [(2,)]
    assert bench.ensure().changed == 0


def test_ensure_creates_a_dropped_column_without_its_values(bench: OwnedSchema) -> None:
    """The metric of the column is null in stored windows."""
    bench.document["spec"]["aggregations"][0]["metrics"].append({"name": "sales", "function": "sum", "field": "amount"})
    bench.ensure()
    bench.run("ALTER TABLE {s}.by_shop_v1 DROP COLUMN _sum_amount")
    assert bench.ensure().changed == 2
    fed = bench.query("SELECT layout, fed FROM {s}._aggregations")
    assert fed == [(1, {"_sum_amount": {"since": 1, "before": []}})]
    assert bench.ensure().changed == 0


def test_new_partitions_are_read_from_offset_0_and_old_ones_keep_their_offsets(bench: OwnedSchema) -> None:
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


def test_ensure_refuses_to_change_the_type_of_a_column(bench: OwnedSchema) -> None:
    """A refused change leaves the schema as it was."""
    bench.ensure()
    bench.document["spec"]["source"]["fields"][1]["type"] = "integer"
    bench.document["metadata"]["generation"] = 2
    refused = bench.ensure()
    assert (refused.rank, refused.reason) == (Rank.FAILED, Reason.NOT_SUPPORTED)
    assert "column shop of table by_shop_v1 has the type text instead of bigint" in refused.message
    assert bench.query("SELECT generation FROM {s}._generation") == [(1,)]


def test_a_schema_of_another_resource_is_a_conflict_until_adopted(bench: OwnedSchema) -> None:
    """After adoption the generation is that of the new resource."""
    bench.document["metadata"]["generation"] = 7
    bench.ensure()
    bench.document["metadata"] |= {"uid": "uid-2", "generation": 1}
    refused = bench.ensure()
    assert (refused.rank, refused.reason) == (Rank.FAILED, Reason.RESOURCE_CONFLICT)
    assert "uid uid-1" in refused.message
    assert bench.ensure(adopt=True).rank == Rank.DONE
    assert bench.query("SELECT generation FROM {s}._generation") == [(1,)]
    assert bench.ensure().changed == 0


def test_a_schema_without_an_owner_is_a_conflict(bench: OwnedSchema) -> None:
    """Tidemill did not create a schema that names no owner."""
    bench.run("CREATE SCHEMA {s}")
    refused = bench.ensure()
    assert (refused.rank, refused.reason) == (Rank.FAILED, Reason.RESOURCE_CONFLICT)
    assert "names no owner" in refused.message
    bench.run("DROP SCHEMA {s}")


def test_release_follows_the_reclaim_policy(bench: OwnedSchema) -> None:
    """Retain keeps everything. Delete drops schema and roles; a second call changes nothing."""
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
    (deleted,) = bench.actuator.release(schema, owner=owner, reclaim="Delete")
    assert deleted.rank == Rank.DONE
    assert bench.actuator.observe(schema.name) is None
    assert bench.query("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'pgtest\\_\\_orders%'") == [(0,)]
    (again,) = bench.actuator.release(schema, owner=owner, reclaim="Delete")
    assert (again.rank, again.changed) == (Rank.DONE, 0)


def test_ensure_waits_for_the_next_pass_when_a_table_is_locked(bench: OwnedSchema) -> None:
    """DDL ends at its lock timeout, and the transaction is rolled back."""
    bench.ensure()
    bench.document["spec"]["aggregations"][0]["metrics"].append({"name": "top", "function": "max", "field": "amount"})
    with bench.login("writer") as writer, writer.transaction():
        writer.execute("SELECT * FROM pgtest__orders.by_shop_v1")
        waits = bench.ensure()
        assert (waits.rank, waits.reason) == (Rank.WAITING, Reason.WAITING)
        assert "a lock was not free" in waits.message
    assert bench.ensure().rank == Rank.DONE


def test_an_address_without_a_server_is_reported_as_unreachable(
    bench: OwnedSchema, unused_port: Callable[[], int]
) -> None:
    """The message names the address without the password."""
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


def test_the_first_observation_creates_a_missing_database(servers: Servers) -> None:
    address = servers.postgres
    other = PostgresAddress(address.host, address.port, "tidemill_new", address.user, address.password)
    assert PostgresSchemas(other).observe("a__b") is None
    with psycopg.connect(other.url, autocommit=True) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == ("tidemill_new",)
    with psycopg.connect(address.url, autocommit=True) as connection:
        connection.execute("DROP DATABASE tidemill_new")


def test_a_read_only_observation_creates_no_database(servers: Servers) -> None:
    """A plan treats a missing database as an empty one."""
    address = servers.postgres
    other = PostgresAddress(address.host, address.port, "tidemill_none", address.user, address.password)
    assert PostgresSchemas(other, read_only=True).observe("a__b") is None
    with psycopg.connect(address.url, autocommit=True) as connection:
        rows = connection.execute("SELECT count(*) FROM pg_database WHERE datname = 'tidemill_none'").fetchall()
    assert rows == [(0,)]


def test_a_read_only_actuator_observes_the_same_and_cannot_write(bench: OwnedSchema) -> None:
    """Postgres refuses writes in the session of a read-only actuator."""
    bench.ensure()
    read_only = PostgresSchemas(bench.servers.postgres, read_only=True)
    assert read_only.observe(bench.plan.schema.name) == bench.actuator.observe(bench.plan.schema.name)
    with (
        pytest.raises(TidemillError, match="read-only transaction"),
        open_session(bench.servers.postgres, "looking", read_only=True) as session,
    ):
        session.write("CREATE SCHEMA mine")


EXAMPLES = sorted((Path(__file__).parents[3] / "crds" / "examples").glob("*.yaml"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_the_sql_script_of_a_schema_creates_the_same_as_ensure(servers: Servers, tmp_path: Path, example: Path) -> None:
    """Golden files show this script. After the script, ensure makes only three further changes."""
    (document,) = load_documents(example.read_text())
    document["metadata"] |= {"uid": "uid-1", "generation": 1}
    owned = OwnedSchema(servers, tmp_path, document)
    try:
        assert owned.ensure().rank == Rank.DONE
        by_ensure = owned.actuator.observe(owned.plan.schema.name)
        owned.run("DROP SCHEMA {s} CASCADE")
        owned.admin.execute(sql.SQL(script(owned.plan.schema)))
        adopted = owned.ensure(adopt=True)
        # The changes are the schema's owner, the topic of its offsets, and the spec in `_generation`.
        assert (adopted.rank, adopted.changed) == (Rank.DONE, 3)
        assert owned.actuator.observe(owned.plan.schema.name) == by_ensure
    finally:
        owned.clean()


def test_the_write_check_returns_the_refusal_and_leaves_no_table(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A standby refuses like a read-only transaction. The check uses a temporary table."""
    assert write_check.write_refusal(servers.postgres) == ""
    with open_session(servers.postgres, "looking") as session:
        assert session.rows("SELECT FROM pg_class WHERE relname = 'tidemill_probe'") == []
    monkeypatch.setattr(write_check, "_WRITE", f"SET TRANSACTION READ ONLY; {write_check._WRITE}")
    assert "cannot execute CREATE TABLE AS in a read-only transaction" in write_check.write_refusal(servers.postgres)
