"""Whose turn it is: of several operators one at a time works on a pipeline, and one that was replaced not at all.

An advisory lock keeps passes over one pipeline apart, whatever they write and wherever. The schema's comment names the
epoch of the operator that wrote last: one of an earlier epoch, which was frozen and has woken, finds a later one there
and writes nothing. Where nobody is elected (on a laptop) there are no epochs, and the lock is all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from typing import Protocol

import psycopg

from tidemill_operator.actuators.postgres.session import LOCK_MS, Session, connected
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.errors import NotOurTurn, Reason
from tidemill_operator.plan.model import Owner

HELD_MS = 30_000
"""How long a holder may be silent; it confirms before each thing it does. A frozen one is in nobody's way then."""


class Leadership(Protocol):
    """What makes this operator the one that works."""

    @property
    def epoch(self) -> int:
        """Greater than that of every leader before."""
        ...

    def outbid(self, seen: int) -> int:
        """A greater epoch was seen: another leads, or counting has begun anew.

        Returns:
            Our epoch, greater than that.

        Raises:
            NotOurTurn: another leads.
        """
        ...


@contextmanager
def exclusive(address: PostgresAddress, schema: str, leadership: Leadership | None) -> Iterator[Callable[[], None]]:
    """Keep other operators off a pipeline.

    Yields:
        What asks whether it still is our turn, and raises what this does if it is not.

    Raises:
        NotOurTurn: another operator is at it, or leads.
        TidemillError: Postgres does not answer.
    """
    with ExitStack() as stack:
        session = stack.enter_context(_locked(address, schema, leadership))

        def confirm() -> None:
            nonlocal session
            try:
                check_epoch(session, schema, leadership)
            except psycopg.Error:
                # We were slow or frozen. Who came meanwhile has left its epoch, or wanted the same.
                session = stack.enter_context(_locked(address, schema, leadership))

        yield confirm


@contextmanager
def _locked(address: PostgresAddress, schema: str, leadership: Leadership | None) -> Iterator[Session]:
    with connected(address, f"waiting for other operators at schema {schema}") as session:
        try:
            # In a transaction: its lock goes when it ends, and Postgres ends it when its holder is silent.
            session.connection.execute("BEGIN")
            session.connection.execute(f"SET LOCAL idle_in_transaction_session_timeout = {HELD_MS}")
            session.rows("SELECT pg_advisory_xact_lock(hashtext('tidemill-pipeline'), hashtext(%s))", (schema,))
        except psycopg.errors.LockNotAvailable as error:
            raise NotOurTurn(
                Reason.WAITING, f"another operator is at schema {schema} for more than {LOCK_MS / 1000:g} s"
            ) from error
        check_epoch(session, schema, leadership)
        try:
            yield session
        finally:
            # If it has ended meanwhile, there is nothing to give back.
            with suppress(psycopg.Error):
                session.connection.execute("ROLLBACK")


def check_epoch(session: Session, schema: str, leadership: Leadership | None) -> int | None:
    """Whether this operator may write a schema.

    Returns:
        The epoch that the schema's comment names; None: it names none.

    Raises:
        NotOurTurn: a later leader has written it.
    """
    rows = session.rows("SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %s", (schema,))
    found = epoch_of(rows[0][0]) if rows else None
    if leadership is not None and found is not None and found > leadership.epoch:
        leadership.outbid(found)
    return found


def epoch_of(comment: str | None) -> int | None:
    """The epoch that a schema's comment names."""
    with suppress(ValueError, KeyError, TypeError):
        return int(json.loads(comment or "")["epoch"])
    return None


def comment(owner: Owner, epoch: int | None) -> str:
    """What a schema's comment is to say."""
    mark: dict[str, object] = {"tidemill": asdict(owner)}
    return json.dumps(mark if epoch is None else {**mark, "epoch": epoch}, sort_keys=True)
