"""Keep two operators from working on the same pipeline, and stop an operator that was replaced.

An advisory lock allows only one reconcile pass of a pipeline at a time. The comment of the schema holds the epoch of
the last leader. An operator with a lower epoch writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from typing import Protocol

import psycopg

from tidemill_operator.actuators.postgres.session import LOCK_MS, Session, open_session
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.errors import LockNotHeldError, Reason
from tidemill_operator.plan.live import Owner

MAX_HOLD_MS = 30_000
"""A hanging operator keeps the lock for at most this time, in ms."""


class Leadership(Protocol):
    """The methods of the leader election that this module uses."""

    @property
    def epoch(self) -> int:
        """Return the epoch of this leader, which is higher than the epochs of all earlier leaders."""
        ...

    def raise_epoch_above(self, seen: int) -> int:
        """Return a new epoch above `seen`, or raise LockNotHeldError if another operator leads."""
        ...


@contextmanager
def lock_pipeline(address: PostgresAddress, schema: str, leadership: Leadership | None) -> Iterator[Callable[[], None]]:
    """Lock a pipeline against other operators.

    Yields a function that checks the lock, and raises LockNotHeldError if another operator took the lock.

    Raises:
        TidemillError: Postgres does not answer.
    """
    with ExitStack() as stack:
        session = stack.enter_context(_open_locked_session(address, schema, leadership))

        def confirm() -> None:
            nonlocal session
            try:
                check_epoch(session, schema, leadership)
            except psycopg.Error:
                # Take the lock again, or fail if another operator has become the leader.
                session = stack.enter_context(_open_locked_session(address, schema, leadership))

        yield confirm


@contextmanager
def _open_locked_session(address: PostgresAddress, schema: str, leadership: Leadership | None) -> Iterator[Session]:
    with open_session(address, f"waiting for other operators at schema {schema}") as session:
        try:
            # Postgres ends an idle transaction after MAX_HOLD_MS, which releases the lock.
            session.connection.execute("BEGIN")
            session.connection.execute(f"SET LOCAL idle_in_transaction_session_timeout = {MAX_HOLD_MS}")
            session.rows("SELECT pg_advisory_xact_lock(hashtext('tidemill-pipeline'), hashtext(%s))", (schema,))
        except psycopg.errors.LockNotAvailable as error:
            raise LockNotHeldError(
                Reason.WAITING, f"another operator has held schema {schema} for more than {LOCK_MS / 1000:g} s"
            ) from error
        check_epoch(session, schema, leadership)
        try:
            yield session
        finally:
            # If the connection has ended, Postgres has already released the lock.
            with suppress(psycopg.Error):
                session.connection.execute("ROLLBACK")


def check_epoch(session: Session, schema: str, leadership: Leadership | None) -> int | None:
    """Return the epoch in a schema's comment, or None.

    Raises:
        LockNotHeldError: a later leader has written the schema, and another operator leads.
    """
    rows = session.rows("SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %s", (schema,))
    epoch = parse_epoch(rows[0][0]) if rows else None
    if leadership is not None and epoch is not None and epoch > leadership.epoch:
        leadership.raise_epoch_above(epoch)
    return epoch


def parse_epoch(comment: str | None) -> int | None:
    """Return the epoch in a schema's comment, or None."""
    with suppress(ValueError, KeyError, TypeError):
        return int(json.loads(comment or "")["epoch"])
    return None


def schema_comment(owner: Owner, epoch: int | None) -> str:
    """Return the text of a schema's comment, which names the owner and the epoch."""
    content: dict[str, object] = {"tidemill": asdict(owner)}
    return json.dumps(content if epoch is None else {**content, "epoch": epoch}, sort_keys=True)
