"""Sends a file in batches, with several workers."""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tidemill_contract.resource.faults import show
from tidemill_contract.resource.paths import Steps
from tidemill_contract.resource.source import FieldSpec
from tidemill_operator.event_files.event_file import EventFile
from tidemill_operator.sending.batches import MAX_EVENTS, Batch, cut_batches
from tidemill_operator.sending.client import Client, Outcome, SendError
from tidemill_operator.sending.pauses import with_pauses
from tidemill_operator.sending.progress import Progress
from tidemill_operator.sending.resume_file import ResumePoint

MAX_REFUSALS = 10
_BATCHES_PER_SECOND = 2


@dataclass(frozen=True)
class SendOptions:
    """The options of sending a file to a pipeline."""

    path: Path | None
    pipeline: str
    fields: Sequence[FieldSpec] = ()
    rate: float | None = None
    workers: int = 1
    resume: Path | None = None
    resend: bool = False

    @property
    def max_batch_events(self) -> int:
        """The maximum number of events in a batch. A low `rate` lowers the number to `rate / 2`, but not below 1."""
        return MAX_EVENTS if self.rate is None else max(1, min(MAX_EVENTS, int(self.rate / _BATCHES_PER_SECOND)))

    @property
    def identity(self) -> str:
        """The part of each batch key that identifies the file and the pipeline."""
        is_repeatable = self.path is not None and self.path.is_file() and not self.resend
        source = str(self.path.absolute()) if is_repeatable and self.path is not None else uuid.uuid4().hex
        return f"{source}\n{self.pipeline}"


@dataclass
class Summary:
    """How many events of a file were sent, accepted and refused.

    Attributes:
        skipped: events that an earlier run has sent, according to the resume file.
        replayed: accepted and refused events of batches that ingest had already received.
        unsure: events of batches that may be in Kafka twice.
    """

    skipped: int = 0
    accepted: int = 0
    refused: int = 0
    replayed: int = 0
    unsure: int = 0
    refusals: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Sender:
    """Sends one file."""

    def __init__(self, file: EventFile, client: Client, options: SendOptions, progress: Progress) -> None:
        self._file, self._client, self._options, self._progress = file, client, options, progress
        self._steps: Mapping[str, Steps] = {each.name: each.steps for each in options.fields}
        self._resume_point: ResumePoint | None = None
        self._stopped = threading.Event()
        self.summary = Summary()

    def stop(self) -> None:
        """Make `run` stop and raise SendError."""
        self._stopped.set()
        self._client.stop()

    def run(self) -> None:
        """Send the file.

        Raises:
            EventFileError: the file cannot be read to its end, or the resume file is for another file.
            SendError: ingest does not accept the events, or `stop` was called.
        """
        options, began = self._options, time.monotonic()
        max_events = options.max_batch_events
        if options.resume is not None and options.path is not None:
            self._resume_point = ResumePoint.load(options.resume, options.path, options.pipeline, max_events)
            max_events, self.summary.skipped = self._resume_point.batch, self._resume_point.sent
        first = self.summary.skipped
        events = self._file.events(options.fields, first, growing=self._resume_point is not None)
        timely = with_pauses(events, 1 / _BATCHES_PER_SECOND) if options.path is None else events
        batches = cut_batches(timely, identity=options.identity, first=first, max_events=max_events)
        try:
            self._send_all(self._paced(batches))
        finally:
            self.summary.seconds = time.monotonic() - began
            self._progress.end()
        if self._stopped.is_set():
            raise SendError("stopped before the end")

    def _send_all(self, batches: Iterator[Batch]) -> None:
        workers = self._options.workers
        pending: deque[tuple[Batch, Future[Outcome]]] = deque()
        pool = ThreadPoolExecutor(workers, thread_name_prefix="send")
        try:
            for batch in batches:
                pending.append((batch, pool.submit(self._client.send, batch)))
                while len(pending) > workers or (pending and pending[0][1].done()):
                    self._finish_first(pending)
            while pending:
                self._finish_first(pending)
        except BaseException:
            self._client.stop()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            # after an error, count the batches in `waiting` that were sent
            for batch, future in pending:
                if not future.cancelled() and future.exception() is None:
                    self._count(batch, future.result())

    def _finish_first(self, pending: deque[tuple[Batch, Future[Outcome]]]) -> None:
        batch, future = pending[0]
        try:
            outcome = future.result()
        except SendError:
            pending.popleft()
            raise
        pending.popleft()
        self._count(batch, outcome)

    def _count(self, batch: Batch, outcome: Outcome) -> None:
        summary, events = self.summary, len(batch.lines)
        summary.accepted += outcome.accepted
        summary.refused += len(outcome.refused)
        summary.replayed += events if outcome.replayed else 0
        summary.unsure += events if outcome.unsure else 0
        for refusal in outcome.refused[: MAX_REFUSALS - len(summary.refusals)]:
            position = f"{self._file.event_label} {batch.lines[refusal.index]}"
            value = self._rejected_value(batch.event(refusal.index), refusal.field)
            field_note = f", field {refusal.field}" if refusal.field else ""
            summary.refusals.append(f"{position}: {refusal.code}{field_note}{value}")
        # Save no position beyond a failed batch, so that the next run sends the failed batch again.
        if (
            self._resume_point is not None
            and self._options.resume is not None
            and self._resume_point.sent == batch.first
        ):
            self._resume_point = self._resume_point.advanced_by(events)
            self._resume_point.save(self._options.resume)
        retries = f", {self._client.retries} retries" if self._client.retries else ""
        self._progress.show(summary.accepted, summary.refused, retries)

    def _rejected_value(self, data: bytes, name: str | None) -> str:
        """Return the value of the field `name`, or the beginning of the event if `name` is None."""
        try:
            value = msgspec.json.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return f": {show(data.decode(errors='replace'))}"
        for step in self._steps.get(name or "", (name,) if name else ()):
            value = value.get(step) if isinstance(value, dict) else None
        return "" if value is None and name else f": {show(value)}"

    def _paced(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        rate, began, events = self._options.rate, time.monotonic(), 0
        for batch in batches:
            if rate is not None and self._stopped.wait(max(0.0, began + events / rate - time.monotonic())):
                return
            if self._stopped.is_set():
                return
            events += len(batch.lines)
            yield batch
