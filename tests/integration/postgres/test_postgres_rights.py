"""Tests of the rights of a pipeline's roles, and of the rights that its administrator needs, on a real Postgres."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import errors, sql

from pipelines.owned_schema import DOCUMENT, OwnedSchema
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.laptop.servers import PostgresAddress, Servers
from tidemill_operator.outcome import Rank

pytestmark = pytest.mark.integration


DENIED: list[tuple[str, str, str]] = [
    ("writer", "CREATE TABLE {s}.mine (a int)", "the operator owns all DDL"),
    ("writer", "ALTER TABLE {s}.by_shop_v1 ADD COLUMN x int", "the operator owns all DDL"),
    ("writer", "DROP TABLE {s}.by_shop_v1", "the operator owns all DDL"),
    ("writer", "DELETE FROM {s}._offsets", "positions are never deleted"),
    ("writer", "UPDATE {s}._generation SET generation = 9", "only the operator sets the generation that may write"),
    ("writer", "UPDATE {s}._aggregations SET shape = '{{}}'", "the writer may change only the columns of progress"),
    ("writer", "SELECT * FROM pgtest__other._offsets", "a role has no rights in another pipeline's schema"),
    ("writer", "CREATE SCHEMA mine", "a role has no rights outside its schema"),
    ("reader", "INSERT INTO {s}._readers (reader) VALUES ('x')", "the reader only reads"),
    ("reader", "SET default_transaction_read_only = off; DELETE FROM {s}._readers", "the reader has no right to write"),
    ("reader", "SELECT {s}.ensure_partition('by_shop_v1', 1, 1)", "the reader only reads"),
    ("reader", "SELECT * FROM pgtest__other._offsets", "a role has no rights in another pipeline's schema"),
]


@pytest.fixture(scope="module")
def pair(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnedSchema]:
    """Create the schemas of two pipelines; return the first."""
    benches = []
    for name in ("orders", "other"):
        document = copy.deepcopy(DOCUMENT)
        document["metadata"]["name"] = name
        benches.append(OwnedSchema(servers, tmp_path_factory.mktemp(name), document))
        assert benches[-1].ensure().rank == Rank.DONE
    yield benches[0]
    for bench in benches:
        bench.clean()


@pytest.mark.parametrize(("role", "statement", "reason"), DENIED, ids=[f"{row[0]}: {row[1]}" for row in DENIED])
def test_a_role_is_refused_each_statement_that_it_does_not_need(
    pair: OwnedSchema, role: str, statement: str, reason: str
) -> None:
    text = sql.SQL(statement).format(s=sql.Identifier(pair.plan.schema.name))
    with pair.login(role) as connection:
        try:
            connection.execute(text)
        except (errors.InsufficientPrivilege, errors.ReadOnlySqlTransaction):
            return
    pytest.fail(f"allowed, although {reason}")


def test_a_role_without_grants_has_no_rights_in_the_schema(pair: OwnedSchema) -> None:
    rows = pair.query(
        "SELECT has_schema_privilege('public', 'pgtest__orders', 'USAGE'),"
        " has_function_privilege('public', 'pgtest__orders.ensure_partition(text, integer, integer)', 'EXECUTE'),"
        " (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        "  WHERE n.nspname = 'pgtest__orders' AND c.relkind IN ('r', 'p')"
        "  AND has_table_privilege('public', c.oid, 'SELECT, INSERT, UPDATE, DELETE'))"
    )
    assert rows == [(False, False, 0)]


def test_a_writer_that_idles_in_a_transaction_loses_its_locks_after_ten_seconds(pair: OwnedSchema) -> None:
    """The setting belongs to the login, so no client has to ask for it."""
    with pair.login("writer") as writer:
        assert writer.execute("SHOW idle_in_transaction_session_timeout").fetchone() == ("10s",)
        assert writer.execute("SHOW tcp_keepalives_idle").fetchone() == ("5",)


def test_an_administrator_without_superuser_is_enough(servers: Servers, tmp_path: Path) -> None:
    """CREATEROLE and the rights on the database are enough to create, use and drop a schema."""
    address = servers.postgres
    with psycopg.connect(address.url, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS tidemill_operator")
        admin.execute("CREATE ROLE tidemill_operator LOGIN CREATEROLE PASSWORD 'operator'")
        admin.execute(
            sql.SQL("GRANT ALL ON DATABASE {} TO tidemill_operator WITH GRANT OPTION").format(
                sql.Identifier(address.database)
            )
        )
        document = copy.deepcopy(DOCUMENT)
        document["metadata"]["name"] = "modest"
        schema = OwnedSchema(servers, tmp_path, document)
        schema.actuator = PostgresSchemas(
            PostgresAddress(address.host, address.port, address.database, "tidemill_operator", "operator")
        )
        try:
            first = schema.ensure()
            assert first.rank == Rank.DONE, first
            assert schema.ensure().changed == 0
            with schema.login("writer") as writer:
                assert writer.execute("SELECT count(*) FROM pgtest__modest._offsets").fetchone() == (3,)
        finally:
            schema.clean()
            admin.execute("DROP OWNED BY tidemill_operator; DROP ROLE tidemill_operator")
