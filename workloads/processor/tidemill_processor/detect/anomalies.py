"""Reads and writes the rows of detector states and anomalies."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import msgspec
import psycopg

from tidemill_contract.tables import anomalies, detectors
from tidemill_contract.tables.quotas import ANOMALIES
from tidemill_processor.database import Database
from tidemill_processor.detect.detectors import State, Verdict
from tidemill_processor.keeper.quotas import KeptCounts, add_counts, remaining_bytes

CLEARED = "cleared"
"""The severity of an anomaly whose window became normal because of late events."""
ANOMALY_BYTES = 500
"""The estimated size in bytes of a stored anomaly, without its group."""
_LONG = re.compile(r"(?<![.\d])\d{17}")


@dataclass(frozen=True)
class Anomaly:
    """An anomaly in a window or a single event, as stored in the table `_anomalies`.

    Attributes:
        group: the group columns as JSON text.
        start: the start of the window, or the time of the event, in RFC 3339.
        end: the end of the window, or the time of the event, in RFC 3339.
        record: the epoch, partition, offset and array index of an event, or four None values for a window.
    """

    rule: str
    aggregation: str
    version: int
    watched: str
    group: str
    start: str
    end: str
    verdict: Verdict
    revision: int = 0
    record: tuple[int | None, int | None, int | None, int | None] = (None, None, None, None)


@dataclass(frozen=True)
class DetectorState:
    """The state of a rule's detector for one group."""

    rule: str
    aggregation_id: int
    group: str
    state: State
    seen: tuple[int, ...] | None = None


def count_by_rule(detected: Iterable[Anomaly]) -> Counter[str]:
    """Count the anomalies of each rule, except cleared anomalies."""
    return Counter(anomaly.rule for anomaly in detected if anomaly.verdict.severity != CLEARED)


def insert_anomalies(
    connection: psycopg.Connection[Any], database: Database, detected: Sequence[Anomaly], place: int
) -> None:
    """Store as many of the new anomalies as the quota allows."""
    if not detected:
        return
    sizes = list(accumulate(ANOMALY_BYTES + 2 * len(a.group) for a in detected))
    fitting = detected[: bisect_right(sizes, remaining_bytes(connection, database, ANOMALIES))]
    rows, size = _insert(connection, database.schema, fitting) if fitting else (0, 0)
    counted = len(detected) - len(fitting)
    add_counts(connection, database, ANOMALIES, place, KeptCounts(rows, size, counted=counted, full=counted > 0))


def scanner_place(aggregation_id: int) -> int:
    """Return the value of the column `place` in `_kept` for the anomalies in an aggregation's windows."""
    return -1 - aggregation_id


def _insert(connection: psycopg.Connection[Any], schema: str, detected: Sequence[Anomaly]) -> tuple[int, int]:
    cursor = connection.cursor()
    cursor.executemany(
        anomalies.insert(schema),
        [
            (
                a.rule, a.aggregation, a.version, a.watched, a.group, a.start, a.end, a.verdict.value, a.verdict.score,
                a.verdict.expected, a.verdict.lower, a.verdict.upper, a.verdict.severity, a.revision, *a.record,
                ANOMALY_BYTES + 2 * len(a.group),
            )
            for a in detected
        ],
        returning=True,
    )  # fmt: skip
    sizes = []
    while True:
        sizes += [size for (size,) in cursor.fetchall()]
        if not cursor.nextset():
            return len(sizes), sum(sizes)


def read_states(
    connection: psycopg.Connection[Any],
    schema: str,
    rules: Collection[str],
    aggregation_id: int,
    groups: Collection[str],
) -> dict[tuple[str, str], State]:
    """Return the stored detector states, by rule and group."""
    rows = connection.execute(detectors.read(schema), (list(rules), aggregation_id, list(groups)))
    return {(rule, group): parse_state(text) for rule, group, text in rows}


def read_groups(connection: psycopg.Connection[Any], schema: str, rule: str, aggregation_id: int) -> list[str]:
    """Return the groups with a stored state of this rule, the oldest first."""
    return [group for (group,) in connection.execute(detectors.groups(schema), (rule, aggregation_id))]


def delete_states(
    connection: psycopg.Connection[Any], schema: str, rule: str, aggregation_id: int, groups: Collection[str]
) -> None:
    """Delete the stored states of a rule for some groups."""
    connection.execute(detectors.delete_groups(schema), (rule, aggregation_id, list(groups)))


def parse_state(text: str) -> State:
    """Parse a stored state. Integers of 17 or more digits become floats."""
    state: State = json.loads(text, parse_int=_number if _LONG.search(text) else int)
    return state


def _number(digits: str) -> int | float:
    return int(digits) if len(digits) < 17 else float(digits)


def save_states(connection: psycopg.Connection[Any], schema: str, states: Sequence[DetectorState]) -> None:
    """Store states of detectors."""
    rows = [
        (
            k.rule,
            k.aggregation_id,
            k.group,
            msgspec.json.encode(k.state).decode(),
            None if k.seen is None else list(k.seen),
        )
        for k in states
    ]
    connection.cursor().executemany(detectors.save(schema), rows)
