"""The messages between the stage and a worker: an `Order` to the worker, and `Report`s back.

Each message is a line of JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from tidemill_processor.stage.attempts import Place


@dataclass(frozen=True)
class Refusal:
    """A record that becomes a dead letter without a call of the user's function, and the reason."""

    place: Place
    why: str


@dataclass(frozen=True)
class Order:
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
class Report:
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


def read_order(text: bytes) -> Order:
    """Parse an `Order`.

    Raises:
        msgspec.MsgspecError: the text is not a valid `Order`.
    """
    return msgspec.json.decode(text, type=Order)


def read_report(line: bytes) -> Report:
    """Parse a `Report`.

    Raises:
        msgspec.MsgspecError: the line is not a valid `Report`.
    """
    return msgspec.json.decode(line, type=Report)


def encoded(message: Order | Report) -> bytes:
    """Encode an order or a report as a line of JSON."""
    return msgspec.json.encode(message) + b"\n"
