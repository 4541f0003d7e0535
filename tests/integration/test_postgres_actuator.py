"""A pipeline's schema on a real Postgres: made whole, made once, repaired, never altered beyond adding."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql

from tidemill_contract import names
from tidemill_contract.resource.documents import load_documents
from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_operator.actuators.base import PipelineSecrets
from tidemill_operator.actuators.local.secrets import FileSecrets
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.actuators.postgres.session import connected
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.laptop.servers import PostgresAddress, Servers
from tidemill_operator.outcome import Outcome, Rank
from tidemill_operator.plan.build import build_plan, owner_of
from tidemill_operator.plan.model import Owner, Plan
from tidemill_operator.plan.postgres.sql import script
from tidemill_operator.settings import Platform

pytestmark = pytest.mark.integration

DOCUMENT: dict[str, Any] = {
    "apiVersion": "tidemill.dev/v1alpha1",
    "kind": "AnalyticsPipeline",
    "metadata": {"name": "orders", "namespace": "pgtest", "uid": "uid-1", "generation": 1},
    "spec": {
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
                "retention": "10d",
            }
        ],
    },
}


class OwnedSchema:
    """One pipeline's schema, and hands to look at it and to damage it."""

    def __init__(self, servers: Servers, folder: Path, document: dict[str, Any]) -> None:
        self.servers, self.document = servers, document
        self.actuator = PostgresSchemas(servers.postgres)
        self.secrets = FileSecrets(folder / "secrets")
        self.admin = psycopg.connect(servers.postgres.url, autocommit=True, options="-c TimeZone=UTC")

    @property
    def pipeline(self) -> AnalyticsPipeline:
        return AnalyticsPipeline.model_validate(self.document)

    @property
    def plan(self) -> Plan:
        return build_plan(self.pipeline, Platform(), self.document["metadata"]["generation"])

    @property
    def owner(self) -> Owner:
        return owner_of(self.pipeline, Platform())

    def logins(self) -> PipelineSecrets:
        schema = self.plan.schema
        return self.secrets.ensure(self.plan.namespace, self.plan.name, writer=schema.writer, reader=schema.reader)

    def ensure(self, *, adopt: bool = False) -> Outcome:
        (found,) = self.actuator.ensure(self.plan.schema, owner=self.owner, secrets=self.logins(), adopt=adopt)
        return found

    def run(self, statement: str) -> None:
        schema = sql.Identifier(self.plan.schema.name)
        roles = {name: sql.Identifier(getattr(self.plan.schema, name)) for name in ("owner", "writer", "reader")}
        for name in ("writer", "reader"):
            for letter, login in zip("ab", names.logins(getattr(self.plan.schema, name)), strict=True):
                roles[f"{name}_{letter}"] = sql.Identifier(login)
        self.admin.execute(sql.SQL(statement).format(s=schema, **roles))

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        return self.admin.execute(sql.SQL(statement).format(s=sql.Identifier(self.plan.schema.name))).fetchall()

    def login(self, role: str) -> psycopg.Connection[Any]:
        """A connection with a role's own password."""
        login = getattr(self.logins(), role)
        at = self.servers.postgres
        return psycopg.connect(
            host=at.host, port=at.port, dbname=at.database, user=login.user, password=login.password, autocommit=True
        )

    def clean(self) -> None:
        plan = self.plan
        live = self.actuator.observe(plan.schema.name)
        owner = live.owner if live and live.owner else self.owner
        (outcome,) = self.actuator.release(plan.schema, owner=owner, reclaim="Delete")
        assert outcome.rank == Rank.DONE, outcome
        self.admin.close()


@pytest.fixture
def bench(servers: Servers, tmp_path: Path) -> Iterator[OwnedSchema]:
    made = OwnedSchema(servers, tmp_path, copy.deepcopy(DOCUMENT))
    yield made
    made.clean()


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
    assert "column shop of table by_shop_v1 holds text and would have to hold bigint" in refused.message
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
    assert "does not say whose it is" in refused.message
    bench.run("DROP SCHEMA {s}")


DENIED: list[tuple[str, str, str]] = [
    ("writer", "CREATE TABLE {s}.mine (a int)", "the operator owns all DDL"),
    ("writer", "ALTER TABLE {s}.by_shop_v1 ADD COLUMN x int", "the operator owns all DDL"),
    ("writer", "DROP TABLE {s}.by_shop_v1", "the operator owns all DDL"),
    ("writer", "DELETE FROM {s}._offsets", "positions are never deleted"),
    ("writer", "UPDATE {s}._generation SET generation = 9", "only the operator says who may write"),
    ("writer", "UPDATE {s}._aggregations SET shape = '{{}}'", "only the columns of progress are the writer's"),
    ("writer", "SELECT * FROM pgtest__other._offsets", "another pipeline's data"),
    ("writer", "CREATE SCHEMA mine", "nothing outside its schema"),
    ("reader", "INSERT INTO {s}._readers (reader) VALUES ('x')", "the reader reads"),
    ("reader", "SET default_transaction_read_only = off; DELETE FROM {s}._readers", "the reader has no right to write"),
    ("reader", "SELECT {s}.ensure_partition('by_shop_v1', 1, 1)", "the reader reads"),
    ("reader", "SELECT * FROM pgtest__other._offsets", "another pipeline's data"),
]


@pytest.fixture(scope="module")
def pair(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnedSchema]:
    """Two pipelines side by side; the first one's bench."""
    benches = []
    for name in ("orders", "other"):
        document = copy.deepcopy(DOCUMENT)
        document["metadata"]["name"] = name
        benches.append(OwnedSchema(servers, tmp_path_factory.mktemp(name), document))
        assert benches[-1].ensure().rank == Rank.DONE
    yield benches[0]
    for made in benches:
        made.clean()


@pytest.mark.parametrize(("role", "statement", "reason"), DENIED, ids=[f"{row[0]}: {row[1]}" for row in DENIED])
def test_roles_have_the_least_rights(pair: OwnedSchema, role: str, statement: str, reason: str) -> None:
    """Each role is refused what it does not need."""
    text = sql.SQL(statement).format(s=sql.Identifier(pair.plan.schema.name))
    with pair.login(role) as connection:
        try:
            connection.execute(text)
        except (errors.InsufficientPrivilege, errors.ReadOnlySqlTransaction):
            return
    pytest.fail(f"allowed, although {reason}")


def test_public_has_nothing(pair: OwnedSchema) -> None:
    """A role without grants sees no table and calls no function of the schema."""
    rows = pair.query(
        "SELECT has_schema_privilege('public', 'pgtest__orders', 'USAGE'),"
        " has_function_privilege('public', 'pgtest__orders.ensure_partition(text, integer, integer)', 'EXECUTE'),"
        " (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        "  WHERE n.nspname = 'pgtest__orders' AND c.relkind IN ('r', 'p')"
        "  AND has_table_privilege('public', c.oid, 'SELECT, INSERT, UPDATE, DELETE'))"
    )
    assert rows == [(False, False, 0)]


def test_writers_lose_their_locks_soon(pair: OwnedSchema) -> None:
    """A writer's session ends idle transactions after ten seconds, whatever its client asks for or not."""
    with pair.login("writer") as writer:
        assert writer.execute("SHOW idle_in_transaction_session_timeout").fetchone() == ("10s",)
        assert writer.execute("SHOW tcp_keepalives_idle").fetchone() == ("5",)


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


def _partitions(bench: OwnedSchema) -> list[str]:
    rows = bench.query(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = '{s}.by_shop_v1'::regclass ORDER BY 1"
    )
    return [name for (name,) in rows]


WIDTHS: list[tuple[list[tuple[int, int]], tuple[int, int], list[tuple[int, int]], str]] = [
    ([], (0, 7), [(0, 7)], "nothing is there"),
    ([(0, 7)], (3, 1), [], "a wider one holds the day"),
    ([(0, 1)], (0, 7), [(1, 7)], "the first day is held, the rest is not"),
    ([(6, 1)], (0, 7), [(0, 6)], "the last day is held"),
    ([(2, 1), (4, 1)], (0, 7), [(0, 2), (3, 4), (5, 7)], "days between are held"),
    ([(-3, 5)], (0, 7), [(2, 7)], "one reaches into it"),
    ([(5, 5)], (0, 7), [(0, 5)], "one reaches out of it"),
    ([(0, 3), (3, 3), (6, 3)], (0, 7), [], "several hold it together"),
]


@pytest.mark.parametrize(("there", "asked", "made", "reason"), WIDTHS, ids=[row[-1] for row in WIDTHS])
def test_partitions_of_another_width(
    bench: OwnedSchema, there: list[tuple[int, int]], asked: tuple[int, int], made: list[tuple[int, int]], reason: str
) -> None:
    """A changed retention changes the width: what is there is used, and only the days that nobody holds are made."""
    bench.ensure()
    day = 19_000

    def ask(first: int, days: int) -> bool:
        ((answer,),) = bench.query(f"SELECT {{s}}.ensure_partition('by_shop_v1', {day + first}, {days})")
        return bool(answer)

    def bounds() -> list[tuple[int, int]]:
        rows = bench.query(
            "SELECT (regexp_match(b, 'FROM .''([^'']+)'))[1]::date - date '1970-01-01',"
            " (regexp_match(b, 'TO .''([^'']+)'))[1]::date - date '1970-01-01' FROM pg_inherits i"
            " JOIN pg_class c ON c.oid = i.inhrelid, pg_get_expr(c.relpartbound, c.oid) b"
            " WHERE i.inhparent = '{s}.by_shop_v1'::regclass ORDER BY 1"
        )
        return [(first - day, end - day) for first, end in rows]

    for first, days in there:
        assert ask(first, days)
    bench.admin.execute("SET timezone = 'America/New_York'; SET datestyle = 'SQL, DMY'")
    assert (ask(*asked), ask(*asked)) == (bool(made), False), reason
    bench.admin.execute("RESET timezone; RESET datestyle")
    assert bounds() == sorted([*((first, first + days) for first, days in there), *made]), reason
    for minute in range(asked[0] * 1440, (asked[0] + asked[1]) * 1440, 1440):
        moment = f"timestamptz 'epoch' + interval '{day} days {minute} minutes'"
        bench.run(f"INSERT INTO {{s}}.by_shop_v1 (window_start, _rev) VALUES ({moment}, 1)")


def test_kept_events_go_like_windows(bench: OwnedSchema) -> None:
    """By their own retention; without kept events there is nothing to look for."""
    bench.document["spec"]["events"] = {"store": True, "retention": "2d"}
    bench.ensure()
    for day in (19_000, 19_001):
        bench.run(f"SELECT {{s}}.ensure_partition('_events', {day}, 1)")
    bench.run(f"UPDATE {{s}}._readers SET watermark = {19_003 * 86_400_000}")
    (marked,) = bench.actuator.expire(bench.plan.schema)
    assert marked.changed == 1
    mark = json.dumps({"tidemill.expiredSince": "2020-01-01T00:00:00+00:00"}).replace("{", "{{").replace("}", "}}")
    bench.run(f"COMMENT ON TABLE {{s}}._events_p20220108 IS '{mark}'")
    bench.actuator.expire(bench.plan.schema)
    left = bench.query(
        "SELECT relname FROM pg_class WHERE relname LIKE '\\_events\\_p%' AND relkind = 'r'"
        " AND relnamespace = '{s}'::regnamespace"
    )
    assert left == [("_events_p20220109",)]
    del bench.document["spec"]["events"]
    (kept,) = bench.actuator.expire(bench.plan.schema)
    assert kept.changed == 0


def test_old_windows_go_a_day_after_the_watermark_passed(bench: OwnedSchema) -> None:
    """A partition past its retention is marked first; a day later it is dropped, at most a few in one pass."""
    bench.ensure()
    for day in range(6):
        bench.run(f"SELECT {{s}}.ensure_partition('by_shop_v1', {19_000 + day}, 1)")
    # Windows are kept 10 days: the watermark stands so that the first five days are past it.
    bench.run(f"UPDATE {{s}}._readers SET watermark = {(19_005 + 10) * 86_400_000}")
    (marked,) = bench.actuator.expire(bench.plan.schema)
    assert (marked.changed, len(_partitions(bench))) == (5, 6)
    (waits,) = bench.actuator.expire(bench.plan.schema)
    assert (waits.changed, len(_partitions(bench))) == (0, 6)
    for name in _partitions(bench)[:5]:
        mark = json.dumps({"tidemill.expiredSince": "2020-01-01T00:00:00+00:00"})
        bench.run(f"COMMENT ON TABLE {{s}}.{name} IS '{mark}'".replace('{"', '{{"').replace('"}', '"}}'))
    bench.actuator.expire(bench.plan.schema)
    assert _partitions(bench) == ["by_shop_v1_p20220112", "by_shop_v1_p20220113"]
    bench.actuator.expire(bench.plan.schema)
    assert _partitions(bench) == ["by_shop_v1_p20220113"]


LETTER = (
    'INSERT INTO {{s}}._dead_letters (epoch, partition, "offset", reason, value, bytes, created_at, published)'
    " SELECT 0, 0, n, 'not_json', 'x', {size}, now() - interval '{age}', {published}"
    " FROM generate_series({first}, {last}) n"
)


def _kept(bench: OwnedSchema, kind: str) -> tuple[Any, ...]:
    sums = ", ".join(f"coalesce(sum({name}), 0)::int" for name in ("rows", "bytes", "expired", "evicted"))
    return bench.query(f"SELECT {sums} FROM {{s}}._kept WHERE kind = '{kind}'")[0]


def test_old_dead_letters_go_and_are_counted(bench: OwnedSchema) -> None:
    """By the wall clock, once they are published; rows of before the upgrade, which count no bytes, as well."""
    bench.document["spec"]["deadLetters"] = {"retention": "2d"}
    bench.ensure()
    bench.run(LETTER.format(size=100, age="3 days", published=True, first=1, last=6_000))
    bench.run(LETTER.format(size="NULL", age="3 days", published=True, first=7_001, last=7_003))
    bench.run(LETTER.format(size=100, age="3 days", published=False, first=8_001, last=8_002))
    bench.run(LETTER.format(size=100, age="1 day", published=True, first=9_001, last=9_004))
    bench.run("INSERT INTO {s}._kept (kind, place, rows, bytes) VALUES ('_dead_letters', 0, 6006, 600600)")
    assert bench.actuator.expire(bench.plan.schema)[0].changed == 6_003
    assert bench.query('SELECT count(*), min("offset") FROM {s}._dead_letters') == [(6, 8_001)]
    assert _kept(bench, "_dead_letters") == (6, 600, 6_003, 0)
    assert bench.actuator.expire(bench.plan.schema)[0].changed == 0


def test_the_oldest_make_room_where_the_quota_is_used_up(bench: OwnedSchema) -> None:
    """As far as an eighth below it, and only what is published; the pipeline's condition has its numbers."""
    bench.document["spec"]["deadLetters"] = {"quota": "1Mi"}
    bench.ensure()
    bench.run(LETTER.format(size=1_024, age="2 hours", published=False, first=1, last=10))
    bench.run(LETTER.format(size=1_024, age="1 hour", published=True, first=11, last=1_024))
    bench.run("INSERT INTO {s}._kept (kind, place, rows, bytes) VALUES ('_dead_letters', 0, 1024, 1048576)")
    assert bench.actuator.expire(bench.plan.schema)[0].changed == 128
    assert bench.query(
        'SELECT count(*) FILTER (WHERE "offset" <= 10), min("offset") FILTER (WHERE published) FROM {s}._dead_letters'
    ) == [(10, 139)]
    assert _kept(bench, "_dead_letters") == (896, 896 * 1_024, 0, 128)
    assert bench.actuator.expire(bench.plan.schema)[0].changed == 0
    live = bench.actuator.observe(bench.plan.schema.name)
    assert live is not None
    assert [(k.kind, k.evicted, k.full) for k in live.kept] == [("_dead_letters", 128, True)]


def test_old_anomalies_go_and_are_counted(bench: OwnedSchema) -> None:
    """By when they were found, not by their window: those of a replayed history stay as long as others."""
    bench.document["spec"]["anomalyHistory"] = {"retention": "30d", "quota": "1Mi"}
    bench.ensure()
    for age, day in (("31 days", "2026-01-01"), ("1 day", "1999-01-01")):
        bench.run(
            "INSERT INTO {s}._anomalies (anomaly, aggregation, version, metric, group_key, window_start, window_end,"
            " value, score, detected_at, published, bytes)"
            f" VALUES ('a', 'b', 1, 'm', '{{{{}}}}', '{day}', '{day}', 1, 1, now() - interval '{age}', true, 500)"
        )
    assert bench.actuator.expire(bench.plan.schema)[0].changed == 1
    assert bench.query("SELECT extract(year FROM window_start)::int FROM {s}._anomalies") == [(1999,)]
    assert _kept(bench, "_anomalies") == (-1, -500, 1, 0)


def test_what_detectors_know_of_groups_long_gone_goes(bench: OwnedSchema) -> None:
    """Of those whose last window is past retention and 90 days; rows of before the upgrade count as of now."""
    bench.ensure()
    now = 20_000 * 86_400_000
    bench.run(f"UPDATE {{s}}._aggregations SET scanned_until = {now}")
    for group, seen in (("old", f"ARRAY[0, {now - 91 * 86_400_000}]"), ("new", f"ARRAY[0, {now}]"), ("unsaid", "NULL")):
        bench.run(
            "INSERT INTO {s}._detectors (anomaly, aggregation_id, group_key, state, seen)"
            f" SELECT 'spike', id, '{group}', '{{{{}}}}', {seen} FROM {{s}}._aggregations"
        )
    bench.run("INSERT INTO {s}._detectors VALUES ('single', -1, 'old', '{{}}', ARRAY[0, 1])")
    bench.actuator.expire(bench.plan.schema)
    known = "SELECT anomaly, group_key, seen[2] FROM {s}._detectors ORDER BY 1, 2"
    assert bench.query(known) == [("single", "old", 1), ("spike", "new", now), ("spike", "unsaid", now)]


def test_a_longer_retention_takes_marks_back(bench: OwnedSchema) -> None:
    """A window that is kept after all is held for a whole day again when it becomes due the next time."""
    bench.ensure()
    bench.run("SELECT {s}.ensure_partition('by_shop_v1', 19000, 1)")
    bench.run(f"UPDATE {{s}}._readers SET watermark = {(19_001 + 10) * 86_400_000}")
    comment = "SELECT obj_description('{s}.by_shop_v1_p20220108'::regclass, 'pg_class')"
    assert bench.actuator.expire(bench.plan.schema)[0].changed == 1
    assert "tidemill.expiredSince" in bench.query(comment)[0][0]
    bench.document["spec"]["aggregations"][0]["retention"] = "20d"
    bench.ensure()
    assert bench.actuator.expire(bench.plan.schema)[0].changed == 1
    assert bench.query(comment) == [(None,)]
    assert bench.actuator.expire(bench.plan.schema)[0].changed == 0
    bench.document["spec"]["aggregations"][0]["retention"] = "10d"
    bench.ensure()
    assert bench.actuator.expire(bench.plan.schema)[0].changed == 1
    assert bench.actuator.expire(bench.plan.schema)[0].changed == 0
    assert _partitions(bench) == ["by_shop_v1_p20220108"]


def test_what_was_detached_and_not_dropped_goes_next_time(bench: OwnedSchema) -> None:
    """The operator may be killed between the two."""
    bench.ensure()
    bench.run("SELECT {s}.ensure_partition('by_shop_v1', 19000, 1)")
    bench.run('COMMENT ON TABLE {s}.by_shop_v1_p20220108 IS \'{{"tidemill.expiredSince": "2020-01-01T00:00:00Z"}}\'')
    bench.run("ALTER TABLE {s}.by_shop_v1 DETACH PARTITION {s}.by_shop_v1_p20220108")
    assert bench.actuator.expire(bench.plan.schema)[0].changed == 1
    assert bench.query("SELECT count(*) FROM pg_class WHERE relname = 'by_shop_v1_p20220108'") == [(0,)]
    assert bench.actuator.expire(bench.plan.schema)[0].changed == 0


def test_a_partition_in_use_is_left_for_later(bench: OwnedSchema) -> None:
    """A reader in a long transaction is not waited for beyond the lock timeout; the next pass finishes the job."""
    bench.ensure()
    bench.run("SELECT {s}.ensure_partition('by_shop_v1', 19000, 1)")
    bench.run(f"UPDATE {{s}}._readers SET watermark = {20_000 * 86_400_000}")
    bench.run('COMMENT ON TABLE {s}.by_shop_v1_p20220108 IS \'{{"tidemill.expiredSince": "2020-01-01T00:00:00Z"}}\'')
    with bench.login("reader") as reader, reader.transaction():
        reader.execute("SELECT count(*) FROM pgtest__orders.by_shop_v1")
        bench.actuator.expire(bench.plan.schema)
        assert bench.query("SELECT count(*) FROM pg_class WHERE relname = 'by_shop_v1_p20220108'") == [(1,)]
    bench.actuator.expire(bench.plan.schema)
    assert bench.query("SELECT count(*) FROM pg_class WHERE relname = 'by_shop_v1_p20220108'") == [(0,)]


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


EXAMPLES = sorted((Path(__file__).parents[2] / "crds" / "examples").glob("*.yaml"))


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


def test_an_administrator_without_superuser_is_enough(servers: Servers, tmp_path: Path) -> None:
    """CREATEROLE and CREATE on the database suffice for all of it, from making to dropping."""
    at = servers.postgres
    with psycopg.connect(at.url, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS tidemill_operator")
        admin.execute("CREATE ROLE tidemill_operator LOGIN CREATEROLE PASSWORD 'operator'")
        admin.execute(
            sql.SQL("GRANT ALL ON DATABASE {} TO tidemill_operator WITH GRANT OPTION").format(
                sql.Identifier(at.database)
            )
        )
        document = copy.deepcopy(DOCUMENT)
        document["metadata"]["name"] = "modest"
        made = OwnedSchema(servers, tmp_path, document)
        made.actuator = PostgresSchemas(PostgresAddress(at.host, at.port, at.database, "tidemill_operator", "operator"))
        try:
            first = made.ensure()
            assert first.rank == Rank.DONE, first
            assert made.ensure().changed == 0
            with made.login("writer") as writer:
                assert writer.execute("SELECT count(*) FROM pgtest__modest._offsets").fetchone() == (3,)
        finally:
            made.clean()
            admin.execute("DROP OWNED BY tidemill_operator; DROP ROLE tidemill_operator")
