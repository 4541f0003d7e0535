"""The messages between the stage and a worker: a `WorkerSetup` to the worker, and `WorkerReport`s back.

Each message is a line of JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from tidemill_processor.stage.attempts import RecordPosition


@dataclass(frozen=True)
class Refusal:
    """A record that becomes a dead letter without a call of the user's function, and the reason."""

    place: RecordPosition
    why: str


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker needs to know at the start.

    Attributes:
        parent: the process id of the stage.
        calls: the file descriptor of the shared memory with the current call.
        reports: the file descriptor to which the worker writes reports.
        stack: the file descriptor to which the worker writes its stack when it gets SIGUSR1.
    """

    parent: int
    calls: int
    reports: int
    stack: int
    refused: tuple[Refusal, ...] = ()


@dataclass(frozen=True)
class WorkerReport:
    """The state of a worker.

    Attributes:
        waits: why the worker waits, or an empty string.
        failed: the error that interrupted processing, or an empty string.
        topic_id: the source topic's id in Kafka, or empty if unknown.
        partitions: the number of the source topic's partitions, or 0 if unknown.
    """

    waits: str = ""
    failed: str = ""
    loaded: bool = False
    topic_id: str = ""
    partitions: int = 0
    imported: tuple[str, ...] = ()
    totals: Mapping[str, float] = field(default_factory=dict)


def read_setup(text: bytes) -> WorkerSetup:
    """Parse a `WorkerSetup`.

    Raises:
        msgspec.MsgspecError: the text is not a valid `WorkerSetup`.
    """
    return msgspec.json.decode(text, type=WorkerSetup)


def read_report(line: bytes) -> WorkerReport:
    """Parse a `WorkerReport`.

    Raises:
        msgspec.MsgspecError: the line is not a valid `WorkerReport`.
    """
    return msgspec.json.decode(line, type=WorkerReport)


def encoded(message: WorkerSetup | WorkerReport) -> bytes:
    """Encode a message as a line of JSON."""
    return msgspec.json.encode(message) + b"\n"
