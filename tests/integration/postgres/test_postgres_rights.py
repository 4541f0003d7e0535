"""What the roles of a pipeline's schema may do, and what its administrator needs."""

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
