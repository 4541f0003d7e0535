"""The state of one live connection, which determines the next messages."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import msgspec

from tidemill_api.catalog import PipelineModel
from tidemill_api.database import Connection, Database
from tidemill_api.database_errors import DATABASE_UNAVAILABLE, as_problem, is_table_error
from tidemill_api.describe import describe_aggregation
from tidemill_api.live.broadcaster import Broadcaster, CloseReason
from tidemill_api.live.change import Change, Key, RowFilter, rows_by_key, upsert_messages
from tidemill_api.live.database_reads import read_changed, read_table_states
from tidemill_api.live.progress import Progress
from tidemill_api.live.query import LiveQuery
from tidemill_chassis.web.problems import Problem, unavailable

log = logging.getLogger(__name__)

PROTOCOL = 1
HEARTBEAT_SECONDS = 15.0
MAX_PENDING_ROWS = 10_000
UNREADABLE_RETRY_SECONDS = 5.0
"""Seconds until the API tries again to read an unreadable aggregation."""
_UNAVAILABLE = 1013


class Message(NamedTuple):
    """A message for a live client.

    Attributes:
        resume: the token with which a client resumes after this message, or an empty text if the token is unchanged.
    """

    kind: str
    data: bytes
    resume: str = ""


def error_message(code: str, detail: str, aggregation: str = "") -> Message:
    """Return an `error` message about one aggregation, or about the whole connection if `aggregation` is empty."""
    about = {"aggregation": aggregation} if aggregation else {}
    return Message("error", msgspec.json.encode({"type": "error", "code": code, "detail": detail, **about}))


@dataclass
class Pending:
    """The changes of one aggregation that have not been sent yet.

    Attributes:
        max_rev: the highest revision of the changes.
        single: the change, if exactly one change is waiting.
        rows: the revision and the encoded row of each changed window, if several changes are waiting.
    """

    max_rev: int = 0
    single: Change | None = None
    rows: dict[Key, tuple[int, bytes]] = field(default_factory=dict)

    def add(self, change: Change, row_filter: RowFilter) -> None:
        """Add a change, whose rows replace older rows of the same windows."""
        self.max_rev = max(self.max_rev, change.max_rev)
        if not self.rows and self.single is None:
            self.single = change
            return
        self._merge_single(row_filter)
        self._merge(change, row_filter)

    def drop(self, rev: int, row_filter: RowFilter) -> None:
        """Drop the rows of revisions up to `rev`."""
        self._merge_single(row_filter)
        self.rows = {key: row for key, row in self.rows.items() if row[0] > rev}

    def messages(self, aggregation: str, row_filter: RowFilter) -> list[bytes]:
        """Return the `upsert` messages with the waiting rows."""
        if self.single is not None:
            return self.single.messages(row_filter)
        return upsert_messages(aggregation, self.max_rev, (text for _, text in self.rows.values()))

    def _merge_single(self, row_filter: RowFilter) -> None:
        single, self.single = self.single, None
        if single is not None:
            self._merge(single, row_filter)

    def _merge(self, change: Change, row_filter: RowFilter) -> None:
        for key, text in change.encoded_rows(row_filter).items():
            self.rows.pop(key, None)  # rows are sent in the order of their latest change
            self.rows[key] = (change.rev, text)


class Listener:
    """The state of one live connection."""

    def __init__(self, broadcaster: Broadcaster, database: Database, model: PipelineModel, query: LiveQuery) -> None:
        self._broadcaster, self._database, self._model, self._query = broadcaster, database, model, query
        self._pending: dict[str, Pending] = {}
        self._snapshot_reasons: dict[str, str] = {}
        self._covered_revs: dict[str, int] = {}
        # For each aggregation that cannot be read: the error, and the time of the next attempt.
        self._unreadable: dict[str, tuple[str, float]] = {}
        self._sent_progress: Progress | None = None
        self._rejection: Message | None = None
        self._has_begun = False
        self._wake = asyncio.Event()
        self.ended = asyncio.Event()
        self.close_reason: CloseReason | None = None

    def offer(self, change: Change) -> None:
        """Queue a change of a requested aggregation, unless the client already has the change."""
        row_filter = self._query.row_filters.get(change.aggregation)
        if row_filter is None or change.rev <= self._covered_revs.get(change.aggregation, 0):
            return
        pending = self._pending.setdefault(change.aggregation, Pending())
        pending.add(change, row_filter)
        if len(pending.rows) > MAX_PENDING_ROWS:
            self.require_snapshot(change.aggregation, "too many changes were waiting for the client")
        self._wake.set()

    def require_snapshot(self, aggregation: str, reason: str = "there were too many changes at once") -> None:
        """Drop the queued changes of an aggregation. The client then gets a snapshot."""
        if aggregation in self._query.row_filters:
            self._pending.pop(aggregation, None)
            self._covered_revs.pop(aggregation, None)
            self._snapshot_reasons[aggregation] = reason
            self._wake.set()

    def advance(self, progress: Progress) -> None:
        """Wake the method `next`, which returns the queued changes and the progress."""
        self._wake.set()

    def end(self, close_reason: CloseReason) -> None:
        """End the connection with a reason."""
        self.close_reason = self.close_reason or close_reason
        self.ended.set()
        self._wake.set()

    def reject_message(self, detail: str) -> None:
        """Answer a message from the client with an error."""
        self._rejection = error_message("unexpected_message", detail)
        self._wake.set()

    async def next(self) -> list[Message]:
        """Wait for the next messages and return them."""
        if self._has_begun:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), HEARTBEAT_SECONDS)
        self._wake.clear()
        try:
            messages = await (self._catch_up() if self._has_begun else self._begin())
        except Exception as error:
            problem = error if isinstance(error, Problem) else as_problem(error, self._model.name)
            if problem is None:
                raise
            self.end(CloseReason(problem.code, problem.detail, _UNAVAILABLE))
            messages = []
        if self.close_reason is not None:
            messages.append(error_message(self.close_reason.code, self.close_reason.detail))
        return messages

    async def _begin(self) -> list[Message]:
        if not await self._broadcaster.wait_ready() and self.close_reason is None:
            raise unavailable(DATABASE_UNAVAILABLE, "the database does not answer; try again later", 5)
        self._has_begun = True
        messages = [self._hello()]
        resume, reasons = self._query.resume, dict.fromkeys(self._query.row_filters, "")
        if resume is not None:
            changed = await self._read_missed()
            reason = "the changes after `resume` are no longer known"
            reasons = {name: reason for name in reasons if name not in changed}
            messages += [message for missed_messages in changed.values() for message in missed_messages]
        self._snapshot_reasons = {**reasons, **self._snapshot_reasons}
        return messages + await self._catch_up()

    def _hello(self) -> Message:
        config = self._model.config
        hello = {
            "type": "hello",
            "protocol": PROTOCOL,
            "namespace": config.namespace,
            "pipeline": config.name,
            "aggregations": [describe_aggregation(self._model.aggregations[name]) for name in self._query.row_filters],
            "heartbeat_seconds": HEARTBEAT_SECONDS,
        }
        return Message("hello", msgspec.json.encode(hello))

    async def _read_missed(self) -> dict[str, list[Message]]:
        positions, model = self._query.resume or {}, self._model

        async def work(connection: Connection) -> dict[str, tuple[int, list[Message]]]:
            missed = {}
            for name, table_state in (await read_table_states(connection, model)).items():
                state, oid = table_state.state, table_state.table_oid
                row_filter, position = self._query.row_filters.get(name), positions.get(name)
                if row_filter is None or position is None or position.table_oid != oid or position.rev > state.rev:
                    continue
                try:
                    async with connection.transaction():
                        rows = await read_changed(
                            connection, model.aggregations[name], state, position, filters=row_filter.filters
                        )
                except Exception as error:
                    if not is_table_error(error):
                        raise
                    continue  # if the changes cannot be read, the client gets a snapshot
                if rows is not None:
                    texts = Change(name, state.rev, state.rev, rows_by_key(rows)).messages(RowFilter())
                    missed[name] = (state.rev, [Message("upsert", text) for text in texts])
            return missed

        read = await self._database.run(model.name, work)
        # The rows from Postgres contain all changes up to `rev`, so drop these changes from `_pending`.
        for name, (rev, _) in read.items():
            self._drop_until(name, rev)
        return {name: messages for name, (_, messages) in read.items()}

    def _drop_until(self, name: str, rev: int) -> None:
        self._covered_revs[name] = rev
        if name in self._pending:
            self._pending[name].drop(rev, self._query.row_filters[name])

    async def _catch_up(self) -> list[Message]:
        messages = [self._rejection] if self._rejection else []
        self._rejection = None
        now = time.monotonic()
        for name in [name for name, (_, retry_at) in self._unreadable.items() if now >= retry_at]:
            self._snapshot_reasons.setdefault(name, "the aggregation could not be read")
        for name in list(self._snapshot_reasons):
            reason = self._snapshot_reasons.pop(name)
            rev = self._broadcaster.delivered_rev(name)
            try:
                row_filter = self._query.row_filters[name]
                snapshot = await self._broadcaster.snapshots.get(self._model, name, row_filter, rev=rev)
            except Exception as error:
                if isinstance(error, Problem) or not is_table_error(error):
                    raise
                messages += self._mark_unreadable(name, error)
                continue
            if self._unreadable.pop(name, None):
                self._sent_progress = None  # send a new token with the newly readable aggregation
            if name in self._snapshot_reasons:
                continue  # changes were dropped during the read, so the client needs a new snapshot
            self._drop_until(name, snapshot.rev)
            if reason:
                reset = {"type": "reset", "aggregation": name, "reason": reason}
                messages.append(Message("reset", msgspec.json.encode(reset)))
            messages += [Message(kind, data) for kind, data in snapshot.messages]
        # Do not `await` between reading `_pending` and `progress`. Otherwise, `progress` could include changes that
        # `messages` lacks.
        pending, self._pending = self._pending, {}
        for name, pending_changes in pending.items():
            messages += [
                Message("upsert", data) for data in pending_changes.messages(name, self._query.row_filters[name])
            ]
        progress = self._broadcaster.progress
        if not self._snapshot_reasons and (progress is not self._sent_progress or not messages):
            self._sent_progress = progress
            if self._unreadable:
                # The client lacks the rows of unreadable aggregations, so the resume token omits these aggregations.
                positions = {
                    name: position for name, position in progress.positions.items() if name not in self._unreadable
                }
                progress = replace(progress, positions=positions)
            messages.append(Message("progress", progress.message, progress.resume))
        return messages

    def _mark_unreadable(self, name: str, error: Exception) -> list[Message]:
        problem = as_problem(error, self._model.name)
        code = problem.code if problem else "unreadable"
        text = f"{type(error).__name__}: {error}" if problem is None else problem.detail
        detail = f"{name} cannot be read now, but other aggregations can; the API tries again: {text}"
        previous_detail = self._unreadable.get(name, ("", 0.0))[0]
        self._unreadable[name], self._sent_progress = (detail, time.monotonic() + UNREADABLE_RETRY_SECONDS), None
        if detail == previous_detail:
            return []
        log.warning("%s: %s", self._model.name, detail)
        return [error_message(code, detail, name)]
