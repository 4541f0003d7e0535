"""What the stage and its worker tell each other: the order at the start, and the worker's reports, as lines of JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from tidemill_processor.stage.attempts import Place


@dataclass(frozen=True)
class Refusal:
    """A record that the user's function does not get, and the reason."""

    place: Place
    why: str


@dataclass(frozen=True)
class Order:
    """What the worker gets at its start.

    Attributes:
        parent: the process id of the stage. The worker ends with it.
        calls: the file descriptor of the shared memory with the current call.
        reports: the file descriptor to which the worker writes reports.
        stack: the file descriptor to which the worker writes its stack when it gets SIGUSR1.
        refused: the records that the function does not get.
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
        waits: why the worker waits, or empty if it does not wait.
        failed: the error after which processing begins again, or empty if there is none.
        loaded: whether the file has been imported.
        topic_id: Kafka's id of the source topic, or empty if it is not known yet.
        partitions: the number of the source topic's partitions, or 0 if it is not known yet.
        imported: the other files of the user's folder that are imported.
        totals: the values of the worker's counters.
    """

    waits: str = ""
    failed: str = ""
    loaded: bool = False
    topic_id: str = ""
    partitions: int = 0
    imported: tuple[str, ...] = ()
    totals: Mapping[str, float] = field(default_factory=dict)


def read_order(text: bytes) -> Order:
    """Return the order in a text.

    Raises:
        msgspec.MsgspecError: the text is no order.
    """
    return msgspec.json.decode(text, type=Order)


def read_report(line: bytes) -> Report:
    """Return the report in a line.

    Raises:
        msgspec.MsgspecError: the line is no report.
    """
    return msgspec.json.decode(line, type=Report)


def encoded(told: Order | Report) -> bytes:
    """Return the line of an order or a report."""
    return msgspec.json.encode(told) + b"\n"
