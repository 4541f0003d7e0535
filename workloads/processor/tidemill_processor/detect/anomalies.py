"""What detectors know and what they found, as rows; whose transaction it is decides what these move together with."""

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
from tidemill_contract.tables.kept import ANOMALIES
from tidemill_processor.database import Database
from tidemill_processor.detect.detectors import State, Verdict
from tidemill_processor.keeper.quotas import Kept, left, note

CLEARED = "cleared"
"""Severity of an anomaly that is none any more."""
ANOMALY_BYTES = 500
"""What a row costs with its place in the indexes, besides its group, which is in two of them."""
_LONG = re.compile(r"(?<![.\d])\d{17}")
"""What was a float: counts and hours have fewer digits, and a float has an exponent from there on."""


@dataclass(frozen=True)
class Anomaly:
    """A verdict on a group's window, or on a single event (see `_anomalies`).

    Attributes:
        group: the group columns as stable JSON.
        start, end: of the window, RFC 3339; of an event both are its time.
        record: of an event its epoch, partition and offset.
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
    record: tuple[int | None, int | None, int | None] = (None, None, None)


@dataclass(frozen=True)
class Known:
    """What a rule's detector knows of a group; `place` is where of (`aggregation_id`), `seen` see `_detectors`."""

    rule: str
    place: int
    group: str
    state: State
    seen: tuple[int, int] | None = None


def by_rule(found: Iterable[Anomaly]) -> Counter[str]:
    """How many were detected by each rule; an anomaly that holds no longer is none."""
    return Counter(anomaly.rule for anomaly in found if anomaly.verdict.severity != CLEARED)


def insert_anomalies(
    connection: psycopg.Connection[Any], database: Database, found: Sequence[Anomaly], place: int
) -> None:
    """Store anomalies as far as their quota reaches, from where they are published; one that is there already stays.

    Args:
        connection: in the transaction that found them.
        database: the pipeline's.
        found: some.
        place: who counts them, see `_kept`.
    """
    if not found:
        return
    sizes = list(accumulate(ANOMALY_BYTES + 2 * len(a.group) for a in found))
    fitting = found[: bisect_right(sizes, left(connection, database, ANOMALIES))]
    rows, size = _insert(connection, database.schema, fitting) if fitting else (0, 0)
    counted = len(found) - len(fitting)
    note(connection, database, ANOMALIES, place, Kept(rows, size, counted=counted, full=counted > 0))


def scanner_place(aggregation_id: int) -> int:
    """Where `_kept` counts the anomalies of an aggregation's windows."""
    return -1 - aggregation_id


def _insert(connection: psycopg.Connection[Any], schema: str, found: Sequence[Anomaly]) -> tuple[int, int]:
    """Rows and bytes stored."""
    cursor = connection.cursor()
    cursor.executemany(
        anomalies.insert(schema),
        [
            (
                a.rule, a.aggregation, a.version, a.watched, a.group, a.start, a.end, a.verdict.value, a.verdict.score,
                a.verdict.expected, a.verdict.lower, a.verdict.upper, a.verdict.severity, a.revision, *a.record,
                ANOMALY_BYTES + 2 * len(a.group),
            )
            for a in found
        ],
        returning=True,
    )  # fmt: skip
    sizes = []
    while True:
        sizes += [size for (size,) in cursor.fetchall()]
        if not cursor.nextset():
            return len(sizes), sum(sizes)


def read_states(
    connection: psycopg.Connection[Any], schema: str, rules: Collection[str], place: int, groups: Collection[str]
) -> dict[tuple[str, str], State]:
    """What detectors know, by rule and group, as far as they know anything."""
    rows = connection.execute(detectors.read(schema), (list(rules), place, list(groups)))
    return {(rule, group): parse_state(text) for rule, group, text in rows}


def known_groups(connection: psycopg.Connection[Any], schema: str, rule: str, place: int) -> list[str]:
    """The groups that a rule's detectors know something of, the one that came last at the end."""
    return [group for (group,) in connection.execute(detectors.groups(schema), (rule, place))]


def forget_states(
    connection: psycopg.Connection[Any], schema: str, rule: str, place: int, groups: Collection[str]
) -> None:
    """Remove what a rule's detectors know of groups."""
    connection.execute(detectors.forget(schema), (rule, place, list(groups)))


def parse_state(text: str) -> State:
    """A state as it was before Postgres had it, which writes 1e+16 as an integer: those are not reckoned with alike."""
    state: State = json.loads(text, parse_int=_number if _LONG.search(text) else int)
    return state


def _number(digits: str) -> int | float:
    return int(digits) if len(digits) < 17 else float(digits)


def save_states(connection: psycopg.Connection[Any], schema: str, known: Sequence[Known]) -> None:
    """Store what detectors know now."""
    rows = [
        (k.rule, k.place, k.group, msgspec.json.encode(k.state).decode(), None if k.seen is None else list(k.seen))
        for k in known
    ]
    connection.cursor().executemany(detectors.save(schema), rows)
