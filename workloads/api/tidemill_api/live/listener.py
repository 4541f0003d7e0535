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
from tidemill_api.database_errors import DATABASE_UNAVAILABLE, as_problem, of_one_table
from tidemill_api.describe import aggregation as describe_aggregation
from tidemill_api.live.change import Change, Key, RowFilter, keyed, upserts
from tidemill_api.live.database_reads import read_changed, read_standings
from tidemill_api.live.progress import Progress
from tidemill_api.live.query import LiveQuery
from tidemill_api.live.upstream import Ending, Upstream
from tidemill_chassis.web.problems import Problem, unavailable

log = logging.getLogger(__name__)

PROTOCOL = 1
HEARTBEAT_SECONDS = 15.0
MAX_PENDING_ROWS = 10_000
UNREAD_SECONDS = 5.0
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
        label: the highest revision of the changes.
        only: the change, if exactly one change is waiting.
        rows: the revision and the encoded row of each changed window, if several changes are waiting.
    """

    label: int = 0
    only: Change | None = None
    rows: dict[Key, tuple[int, bytes]] = field(default_factory=dict)

    def add(self, change: Change, wanted: RowFilter) -> None:
        """Add a change, whose rows replace older rows of the same windows."""
        self.label = max(self.label, change.label)
        if not self.rows and self.only is None:
            self.only = change
            return
        self._spread(wanted)
        self._merge(change, wanted)

    def drop(self, rev: int, wanted: RowFilter) -> None:
        """Drop the rows of revisions up to `rev`."""
        self._spread(wanted)
        self.rows = {key: row for key, row in self.rows.items() if row[0] > rev}

    def messages(self, aggregation: str, wanted: RowFilter) -> list[bytes]:
        """Return the `upsert` messages with the waiting rows."""
        if self.only is not None:
            return self.only.messages(wanted)
        return upserts(aggregation, self.label, (text for _, text in self.rows.values()))

    def _spread(self, wanted: RowFilter) -> None:
        only, self.only = self.only, None
        if only is not None:
            self._merge(only, wanted)

    def _merge(self, change: Change, wanted: RowFilter) -> None:
        for key, text in change.chosen(wanted).items():
            self.rows.pop(key, None)  # rows are sent in the order of their latest change
            self.rows[key] = (change.rev, text)


class Listener:
    """The state of one live connection."""

    def __init__(self, upstream: Upstream, database: Database, model: PipelineModel, query: LiveQuery) -> None:
        self._upstream, self._database, self._model, self._query = upstream, database, model, query
        self._pending: dict[str, Pending] = {}
        self._lost: dict[str, str] = {}
        self._floors: dict[str, int] = {}
        # For each aggregation that cannot be read: the error, and the time of the next attempt.
        self._unread: dict[str, tuple[str, float]] = {}
        self._sent: Progress | None = None
        self._fault: Message | None = None
        self._begun = False
        self._wake = asyncio.Event()
        self.ended = asyncio.Event()
        self.ending: Ending | None = None

    def offer(self, change: Change) -> None:
        """Queue a change of a requested aggregation, unless the client already has the change."""
        wanted = self._query.wanted.get(change.aggregation)
        if wanted is None or change.rev <= self._floors.get(change.aggregation, 0):
            return
        pending = self._pending.setdefault(change.aggregation, Pending())
        pending.add(change, wanted)
        if len(pending.rows) > MAX_PENDING_ROWS:
            self.lose(change.aggregation, "too many changes were waiting for the client")
        self._wake.set()

    def lose(self, aggregation: str, reason: str = "there were too many changes at once") -> None:
        """Drop the queued changes of an aggregation. The client then gets a snapshot."""
        if aggregation in self._query.wanted:
            self._pending.pop(aggregation, None)
            self._floors.pop(aggregation, None)
            self._lost[aggregation] = reason
            self._wake.set()

    def advance(self, progress: Progress) -> None:
        """Wake the method `next`, which returns the queued changes and the progress."""
        self._wake.set()

    def end(self, ending: Ending) -> None:
        """End the connection with a reason."""
        self.ending = self.ending or ending
        self.ended.set()
        self._wake.set()

    def object_to(self, detail: str) -> None:
        """Answer a message from the client with an error."""
        self._fault = error_message("unexpected_message", detail)
        self._wake.set()

    async def next(self) -> list[Message]:
        """Wait for the next messages and return them."""
        if self._begun:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), HEARTBEAT_SECONDS)
        self._wake.clear()
        try:
            messages = await (self._catch_up() if self._begun else self._begin())
        except Exception as error:
            problem = error if isinstance(error, Problem) else as_problem(error, self._model.name)
            if problem is None:
                raise
            self.end(Ending(problem.code, problem.detail, _UNAVAILABLE))
            messages = []
        if self.ending is not None:
            messages.append(error_message(self.ending.code, self.ending.detail))
        return messages

    async def _begin(self) -> list[Message]:
        if not await self._upstream.ready() and self.ending is None:
            raise unavailable(DATABASE_UNAVAILABLE, "the database does not answer; try again later", 5)
        self._begun = True
        messages = [self._hello()]
        resume, lost = self._query.resume, dict.fromkeys(self._query.wanted, "")
        if resume is not None:
            changed = await self._resumed()
            lost = {name: "the changes after `resume` are no longer known" for name in lost if name not in changed}
            messages += [message for changes in changed.values() for message in changes]
        self._lost = {**lost, **self._lost}
        return messages + await self._catch_up()

    def _hello(self) -> Message:
        config = self._model.config
        hello = {
            "type": "hello",
            "protocol": PROTOCOL,
            "namespace": config.namespace,
            "pipeline": config.name,
            "aggregations": [describe_aggregation(self._model.aggregations[name]) for name in self._query.wanted],
            "heartbeat_seconds": HEARTBEAT_SECONDS,
        }
        return Message("hello", msgspec.json.encode(hello))

    async def _resumed(self) -> dict[str, list[Message]]:
        marks, model = self._query.resume or {}, self._model

        async def work(connection: Connection) -> dict[str, tuple[int, list[Message]]]:
            changes = {}
            for name, standing in (await read_standings(connection, model)).items():
                wanted, mark = self._query.wanted.get(name), marks.get(name)
                if wanted is None or mark is None or mark.table != standing.table or mark.rev > standing.state.rev:
                    continue
                try:
                    async with connection.transaction():
                        rows = await read_changed(
                            connection, model.aggregations[name], standing.state, mark, filters=wanted.filters
                        )
                except Exception as error:
                    if not of_one_table(error):
                        raise
                    continue  # if the changes cannot be read, the client gets a snapshot
                if rows is not None:
                    rev = standing.state.rev
                    texts = Change(name, rev, rev, keyed(rows)).messages(RowFilter())
                    changes[name] = (rev, [Message("upsert", text) for text in texts])
            return changes

        read = await self._database.run(model.name, work)
        # The rows from Postgres contain all changes up to `rev`, so `_settle` drops these changes from `_pending`.
        for name, (rev, _) in read.items():
            self._settle(name, rev)
        return {name: messages for name, (_, messages) in read.items()}

    def _settle(self, name: str, rev: int) -> None:
        self._floors[name] = rev
        if name in self._pending:
            self._pending[name].drop(rev, self._query.wanted[name])

    async def _catch_up(self) -> list[Message]:
        messages = [self._fault] if self._fault else []
        self._fault = None
        now = time.monotonic()
        for name in [name for name, (_, again_at) in self._unread.items() if now >= again_at]:
            self._lost.setdefault(name, "the aggregation could not be read")
        for name in list(self._lost):
            reason = self._lost.pop(name)
            rev = self._upstream.delivered(name)
            try:
                snapshot = await self._upstream.snapshots.get(self._model, name, self._query.wanted[name], rev=rev)
            except Exception as error:
                if isinstance(error, Problem) or not of_one_table(error):
                    raise
                messages += self._leave_out(name, error)
                continue
            if self._unread.pop(name, None):
                self._sent = None  # send a new token with the newly readable aggregation
            if name in self._lost:
                continue  # changes were dropped during the read, so the client needs a new snapshot
            self._settle(name, snapshot.rev)
            if reason:
                reset = {"type": "reset", "aggregation": name, "reason": reason}
                messages.append(Message("reset", msgspec.json.encode(reset)))
            messages += [Message(kind, data) for kind, data in snapshot.messages]
        # Do not `await` between reading `_pending` and `progress`. Otherwise, `progress` could include changes that
        # `messages` lacks.
        pending, self._pending = self._pending, {}
        for name, waiting in pending.items():
            messages += [Message("upsert", data) for data in waiting.messages(name, self._query.wanted[name])]
        progress = self._upstream.progress
        if not self._lost and (progress is not self._sent or not messages):
            self._sent = progress
            if self._unread:
                # The client lacks the rows of aggregations in `_unread`, so the resume token omits these aggregations.
                marks = {name: mark for name, mark in progress.marks.items() if name not in self._unread}
                progress = replace(progress, marks=marks)
            messages.append(Message("progress", progress.message, progress.resume))
        return messages

    def _leave_out(self, name: str, error: Exception) -> list[Message]:
        problem = as_problem(error, self._model.name)
        code = problem.code if problem else "unreadable"
        text = f"{type(error).__name__}: {error}" if problem is None else problem.detail
        detail = f"{name} cannot be read now, but other aggregations can; the API tries again: {text}"
        before = self._unread.get(name, ("", 0.0))[0]
        self._unread[name], self._sent = (detail, time.monotonic() + UNREAD_SECONDS), None
        if detail == before:
            return []
        log.warning("%s: %s", self._model.name, detail)
        return [error_message(code, detail, name)]
