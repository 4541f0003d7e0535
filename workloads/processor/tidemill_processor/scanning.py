"""Anomaly rules over closed windows: detectors' states, anomalies and `scanned_until` move in one transaction."""

from __future__ import annotations

import datetime as dt
import json
from functools import lru_cache
from itertools import islice
from typing import Any

import psycopg

from tidemill_contract import metrics
from tidemill_contract.spec import AnomalySpec
from tidemill_processor.database import AggregationStore, Database
from tidemill_processor.detectors import State, judge
from tidemill_processor.windows import Span, WindowReader

SPAN_PANES = 64
"""At most this many panes are scanned in a transaction."""
PIECE_WINDOWS = 2_000
"""At most this many windows, and the states of their groups, are held at a time."""


class Scanner:
    """Runs the anomaly rules of one aggregation."""

    def __init__(self, database: Database, store: AggregationStore, rules: list[AnomalySpec], pipeline: str) -> None:
        self._database, self._schema = database, database.schema
        self._store = store
        self._rules = rules
        self._reader = WindowReader(database, store)
        self._pipeline = pipeline

    def run(self, connection: psycopg.Connection[Any], closed_until: int) -> int:
        """Scan windows closed since the last time; the number of anomalies found. Skips if another replica scans."""
        with connection.transaction():
            row = connection.execute(
                f"SELECT scanned_until, pg_try_advisory_xact_lock(hashtext(%s), id) FROM {self._schema}._aggregations"
                " WHERE id = %s",
                (f"{self._schema}/scan", self._store.id),
            ).fetchone()
            if row is None or not row[1] or (row[0] is not None and row[0] >= closed_until):
                return 0
            # From that generation on other columns may be fed: windows closed since then are its processors' to read.
            if self._database.newer_generation(connection) is not None:
                return 0
            plan = self._store.layout
            panes = SPAN_PANES + (plan.reach_ms // plan.pane_ms if plan.hopping else 0)
            span = self._reader.span(connection, row[0], closed_until, panes)
            until, found = closed_until, 0
            if span is not None:
                until, found = span.last_ms, self._scan(connection, span)
            connection.execute(
                f"UPDATE {self._schema}._aggregations SET scanned_until = %s WHERE id = %s", (until, self._store.id)
            )
        if found:
            metrics.ANOMALIES_DETECTED.inc(found)
        return found

    def _scan(self, connection: psycopg.Connection[Any], span: Span) -> int:
        """Judge the windows of a span, a piece at a time; the number of anomalies found."""
        rows, count, columns = self._reader.closed(connection, span), 0, self._reader.columns
        while piece := [dict(zip(columns, row, strict=True)) for row in islice(rows, PIECE_WINDOWS)]:
            groups = [
                json.dumps({name: window[name] for name in self._reader.groups}, sort_keys=True) for window in piece
            ]
            before = self._states(connection, set(groups))
            states = dict(before)
            found: list[tuple[Any, ...]] = []
            for group, window in zip(groups, piece, strict=True):
                self._judge(window, group, states, found)
            self._save(connection, {key: state for key, state in states.items() if before.get(key) is not state}, found)
            count += len(found)
        return count

    def _judge(
        self,
        window: dict[str, Any],
        group: str,
        states: dict[tuple[str, str], State],
        found: list[tuple[Any, ...]],
    ) -> None:
        for rule in self._rules:
            value = window[rule.metric]
            if value is None:
                continue
            at_ms = _epoch_ms(window["window_start"])
            verdict, states[rule.name, group] = judge(
                rule.detector, states.get((rule.name, group), {}), at_ms, float(value)
            )
            if verdict is not None:
                found.append((
                    rule.name, self._store.name, self._store.version, rule.metric, group, window["window_start"],
                    window["window_end"], verdict.value, verdict.score, verdict.expected, verdict.lower,
                    verdict.upper, verdict.severity,
                ))  # fmt: skip

    def _states(self, connection: psycopg.Connection[Any], groups: set[str]) -> dict[tuple[str, str], State]:
        query = (
            f"SELECT anomaly, group_key, state FROM {self._schema}._detectors"
            " WHERE aggregation_id = %s AND anomaly = ANY(%s) AND group_key = ANY(%s)"
        )
        rules = [rule.name for rule in self._rules]
        rows = connection.execute(query, (self._store.id, rules, list(groups)))
        return {(rule, group): state for rule, group, state in rows}

    def _save(
        self, connection: psycopg.Connection[Any], states: dict[tuple[str, str], State], found: list[tuple[Any, ...]]
    ) -> None:
        cursor = connection.cursor()
        cursor.executemany(
            f"INSERT INTO {self._schema}._detectors (anomaly, aggregation_id, group_key, state) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (anomaly, aggregation_id, group_key) DO UPDATE SET state = EXCLUDED.state",
            [(rule, self._store.id, group, json.dumps(state)) for (rule, group), state in states.items()],
        )
        cursor.executemany(
            f"INSERT INTO {self._schema}._anomalies (anomaly, aggregation, version, metric, group_key, window_start,"
            " window_end, value, score, expected, lower, upper, severity)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            found,
        )


@lru_cache(maxsize=4096)
def _epoch_ms(text: str) -> int:
    """The windows of a span start at few different times."""
    return round(dt.datetime.fromisoformat(text).timestamp() * 1000)
