"""Make a pipeline's Postgres schema match the plan in one transaction.

Tables and columns are added or renamed, but not dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import psycopg
from psycopg import errors, sql

from tidemill_contract.tables.definition import Table
from tidemill_operator import outcome
from tidemill_operator.actuators.base import Exists, PipelineSecrets, Reclaim
from tidemill_operator.actuators.postgres.claims import claim_conflicts, lock_topics, record_claim
from tidemill_operator.actuators.postgres.expiry import expire
from tidemill_operator.actuators.postgres.grants import ensure_grants
from tidemill_operator.actuators.postgres.keys import widen_keys
from tidemill_operator.actuators.postgres.observation import observe
from tidemill_operator.actuators.postgres.ownership import Leadership, check_epoch, lock_pipeline, schema_comment
from tidemill_operator.actuators.postgres.replays import complete_replay, delete_cancelled_replays
from tidemill_operator.actuators.postgres.roles import drop_roles, end_sessions, ensure_roles, role_conflicts
from tidemill_operator.actuators.postgres.rows import ensure_rows
from tidemill_operator.actuators.postgres.session import LockBusy, NoDatabase, Session, open_session
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.errors import LockNotHeldError, Reason, TidemillError
from tidemill_operator.outcome import Component, Outcome
from tidemill_operator.plan.live import LiveSchema, Owner
from tidemill_operator.plan.model import Schema
from tidemill_operator.plan.postgres.damage import damage_error
from tidemill_operator.plan.postgres.sql import add_column, create_index, create_table, rename_column
from tidemill_operator.plan.refusals import column_type_errors, ownership_errors

_DROP_AT_ONCE = 50


class PostgresSchemas:
    """A thread-safe actuator for the schemas of one database.

    If the database is missing, the actuator creates the database. With `read_only`, nothing is created, and a missing
    database counts as an empty database.
    """

    def __init__(
        self, address: PostgresAddress, *, read_only: bool = False, leadership: Leadership | None = None
    ) -> None:
        self._address, self._read_only, self._leadership = address, read_only, leadership

    def lock(self, schema: str) -> AbstractContextManager[Callable[[], None]]:
        """Lock a pipeline against other operators.

        Yields a function that checks the lock, and raises LockNotHeldError if another operator took the lock.

        Raises:
            TidemillError: Postgres does not answer.
        """
        return lock_pipeline(self._address, schema, self._leadership)

    def observe(self, schema: str) -> LiveSchema | None:
        """Return the live schema, or None if it does not exist.

        Raises:
            TidemillError: Postgres does not answer.
        """
        doing = f"looking at schema {schema}"
        try:
            with (
                open_session(self._address, doing, read_only=self._read_only) as session,
                session.connection.transaction(),
            ):
                return observe(session, schema)
        except NoDatabase:
            return None

    def conflicts(self, schema: Schema, owner: Owner) -> list[TidemillError]:
        """Return the errors that `ensure` would raise because topics or roles belong to another owner.

        Raises:
            TidemillError: Postgres does not answer.
        """
        try:
            with open_session(self._address, f"looking at schema {schema.name}", read_only=self._read_only) as session:
                claim_errors = [error for _, error in claim_conflicts(session, schema, owner)]
                return [*claim_errors, *role_conflicts(session, schema, owner)]
        except NoDatabase:
            return []

    def ensure(
        self,
        schema: Schema,
        *,
        owner: Owner,
        secrets: PipelineSecrets,
        adopt: bool = False,
        exists: Exists | None = None,
    ) -> list[Outcome]:
        """Make the schema match the plan.

        Args:
            schema: the schema in the plan.
            owner: the resource that the schema belongs to.
            secrets: the logins of writer and reader.
            adopt: take over a schema and roles of another owner, and topics of deleted pipelines.
            exists: returns whether a pipeline exists. Without this function, all other pipelines count as deleted.

        Raises:
            TidemillError: Postgres does not answer.
        """

        def act(session: Session) -> Outcome:
            live = observe(session, schema.name)
            if live is not None and not adopt:
                _raise_first(ownership_errors(schema.name, live.owner, owner))
            if live is not None:
                _raise_first(error for table in schema.tables for error in column_type_errors(table, live))
            if schema.lost:
                raise damage_error(schema)
            lock_topics(session, schema, owner, is_gone=_gone_check(exists) if adopt else None)
            epoch = check_epoch(session, schema.name, self._leadership)
            ensure_roles(session, schema, owner=owner, secrets=secrets, adopt=adopt)
            _ensure_schema(session, schema, live, owner, epoch, self._leadership.epoch if self._leadership else epoch)
            with session.acting_as(schema.owner):
                _ensure_tables(session, schema, live)
                widen_keys(session, schema, live)
                delete_cancelled_replays(session, schema)
                _ensure_functions(session, schema)
                record_claim(session, schema)
                ensure_grants(session, schema)
                regress = live is None or live.owner != owner
                ensure_rows(session, schema, live, regress=regress)
                complete_replay(session, schema)
            return outcome.done(Component.SCHEMA, schema.name, changed=session.changed)

        return [
            self._run_transaction(schema.name, "making", act, afterwards=lambda session: end_sessions(session, schema))
        ]

    def release(self, schema: Schema, *, owner: Owner, reclaim: Reclaim) -> list[Outcome]:
        """Drop schema and roles if the policy is Delete.

        Raises:
            TidemillError: Postgres does not answer.
        """
        if reclaim == "Retain":
            return [outcome.skipped(Component.SCHEMA, schema.name, message="kept")]
        with open_session(self._address, f"dropping schema {schema.name}") as session:
            live = observe(session, schema.name)
            if live is not None:
                for error in ownership_errors(schema.name, live.owner, owner):
                    return [outcome.failed(Component.SCHEMA, schema.name, error)]
                check_epoch(session, schema.name, self._leadership)
                while self._drop_partitions(session, schema.name):
                    pass

        def act(session: Session) -> Outcome:
            check_epoch(session, schema.name, self._leadership)
            if live is not None:
                session.write("DROP SCHEMA {} CASCADE", schema.name)
            drop_roles(session, schema)
            return outcome.done(Component.SCHEMA, schema.name, changed=session.changed)

        return [self._run_transaction(schema.name, "dropping", act)]

    def expire(self, schema: Schema) -> list[Outcome]:
        """Drop some window partitions and delete some rows that are past their retention.

        Raises:
            TidemillError: Postgres does not answer.
        """
        with open_session(self._address, f"dropping old windows of schema {schema.name}") as session:
            expire(session, schema)
            return [outcome.done(Component.SCHEMA, schema.name, changed=session.changed)]

    def _run_transaction(
        self,
        schema: str,
        doing: str,
        act: Callable[[Session], Outcome],
        afterwards: Callable[[Session], None] = lambda _: None,
    ) -> Outcome:
        try:
            with open_session(self._address, f"{doing} schema {schema}") as session:
                with session.transaction(schema):
                    schema_outcome = act(session)
                afterwards(session)
                return replace(schema_outcome, changed=session.changed)
        except LockBusy as busy:
            return outcome.waiting(Component.SCHEMA, schema, busy.message)
        except TidemillError as error:
            if error.reason == Reason.UNREACHABLE or isinstance(error, LockNotHeldError):
                raise
            return outcome.failed(Component.SCHEMA, schema, error)

    def _drop_partitions(self, session: Session, schema: str) -> bool:
        """Drop a few partitions, because dropping hundreds at once would exceed the locks of a transaction."""
        rows = session.rows(
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = %s AND c.relispartition AND c.relkind = 'r' LIMIT %s",
            (schema, _DROP_AT_ONCE),
        )
        if rows:
            tables = sql.SQL(", ").join(sql.Identifier(schema, name) for (name,) in rows)
            session.write("DROP TABLE {}", tables)
        return bool(rows)


def _gone_check(exists: Exists | None) -> Callable[[Owner], bool]:
    return lambda owner: exists is None or not exists(owner.namespace, owner.name)


def _raise_first(errors: Iterable[TidemillError]) -> None:
    for error in errors:
        raise error


def _ensure_schema(
    session: Session, schema: Schema, live: LiveSchema | None, owner: Owner, live_epoch: int | None, epoch: int | None
) -> None:
    if live is None:
        session.write("CREATE SCHEMA {} AUTHORIZATION {}", schema.name, schema.owner)
    if live is None or live.owner != owner or live_epoch != epoch:
        session.write("COMMENT ON SCHEMA {} IS {}", schema.name, sql.Literal(schema_comment(owner, epoch)))


def _ensure_tables(session: Session, schema: Schema, live: LiveSchema | None) -> None:
    live_columns = live.columns if live else {}
    for table_name, renames in live.renames.items() if live else ():
        for before, after in renames.items():
            session.write("{}", sql.SQL(rename_column(schema.name, table_name, before, after)))
    indexes = {
        name for (name,) in session.rows("SELECT indexname FROM pg_indexes WHERE schemaname = %s", (schema.name,))
    }
    for table in schema.tables:
        if table.name not in live_columns:
            with _translate_table_errors(table, schema):
                session.write("{}", sql.SQL(create_table(schema.name, table)))
        else:
            for column in table.columns:
                if column.name not in live_columns[table.name]:
                    session.write("{}", sql.SQL(add_column(schema.name, table, column)))
        for index, definition in table.indexes:
            if index not in indexes:
                session.write("{}", sql.SQL(create_index(schema.name, table, index, definition)))


@contextmanager
def _translate_table_errors(table: Table, schema: Schema) -> Iterator[None]:
    """Raise a Postgres error about a table as a TidemillError that names the aggregation."""
    try:
        yield
    except errors.InsufficientPrivilege:
        raise
    except psycopg.ProgrammingError as error:
        aggregation = next((row.name for row in schema.aggregations if row.table_name == table.name), "")
        raise TidemillError(
            Reason.NOT_SUPPORTED,
            f"spec.aggregations[{aggregation}]: Postgres refuses its table {table.name}:"
            f" {error.diag.message_primary or error}",
            "derive a field with another name from the column that Postgres names; group by the derived field",
        ) from error


def _ensure_functions(session: Session, schema: Schema) -> None:
    rows = session.rows(
        "SELECT p.proname, p.prosrc, p.prosecdef FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
        " WHERE n.nspname = %s",
        (schema.name,),
    )
    live = {name: (body, definer) for name, body, definer in rows}
    for name, text in schema.functions:
        if live.get(name) != (text.split("$body$")[1], "SECURITY DEFINER" in text):
            session.write("{}", sql.SQL(text))
