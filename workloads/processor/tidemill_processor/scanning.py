"""Anomaly rules over closed windows: detectors' states, anomalies and `scanned_until` move in one transaction."""

from __future__ import annotations

from itertools import islice
from typing import Any

import psycopg

from tidemill_contract import metrics
from tidemill_contract.spec import AnomalySpec
from tidemill_processor.anomalies import Anomaly, Known, insert_anomalies, read_states, save_states, scanner_place
from tidemill_processor.database import AggregationStore, Database
from tidemill_processor.detectors import State, judge
from tidemill_processor.rescoring import ClosedWindow, Rescorer
from tidemill_processor.windows import Span, WindowReader

SPAN_PANES = 64
"""At most this many panes are scanned in a transaction."""
PIECE_WINDOWS = 2_000
"""At most this many windows, and the states of their groups, are held at a time."""


class Scanner:
    """Runs the anomaly rules of one aggregation."""

    def __init__(self, database: Database, store: AggregationStore, rules: list[AnomalySpec]) -> None:
        self._database, self._schema = database, database.schema
        self._store = store
        self._rules = rules
        self._reader = WindowReader(database, store)
        self._again = Rescorer(database, store, rules, self._reader)

    def run(self, connection: psycopg.Connection[Any], closed_until: int) -> int:
        """Scan windows closed since the last time, and those that late events changed; the number of anomalies found.

        Skips if another replica scans.
        """
        with connection.transaction():
            row = connection.execute(
                f"SELECT scanned_until, pg_try_advisory_xact_lock(hashtext(%s), id) FROM {self._schema}._aggregations"
                " WHERE id = %s",
                (f"{self._schema}/scan", self._store.id),
            ).fetchone()
            if row is None or not row[1]:
                return 0
            # From that generation on other columns may be fed: windows closed since then are its processors' to read.
            if self._database.newer_generation(connection) is not None:
                return 0
            found = 0 if row[0] is None else self._again.run(connection, min(row[0], closed_until))
            if row[0] is None or row[0] < closed_until:
                found += self._advance(connection, row[0], closed_until)
        if found:
            metrics.ANOMALIES_DETECTED.inc(found)
        return found

    def _advance(self, connection: psycopg.Connection[Any], scanned_until: int | None, closed_until: int) -> int:
        plan = self._store.layout
        panes = SPAN_PANES + plan.spread_ms // plan.pane_ms
        span = self._reader.span(connection, scanned_until, closed_until, panes)
        until, found = closed_until, 0
        if span is not None:
            until, found = span.last_ms, self._scan(connection, span)
        update = f"UPDATE {self._schema}._aggregations SET scanned_until = %s WHERE id = %s"
        connection.execute(update, (until, self._store.id))
        self._again.forget(connection, until)
        return found

    def _scan(self, connection: psycopg.Connection[Any], span: Span) -> int:
        """Judge the windows of a span, a piece at a time; the number of anomalies found."""
        rows, count = self._reader.closed(connection, span), 0
        while piece := list(islice((ClosedWindow.of(self._reader, row) for row in rows), PIECE_WINDOWS)):
            before = self._states(connection, {window.group for window in piece})
            states, history = dict(before), []
            found: list[Anomaly] = []
            for window in piece:
                for rule in self._rules:
                    value = window.metrics[rule.watched]
                    if value is None:
                        continue
                    known = states.get((rule.name, window.group), {})
                    history.append((rule.name, window, known))
                    verdict, states[rule.name, window.group] = judge(
                        rule.detector, known, window.start_ms, float(value)
                    )
                    if verdict is not None:
                        found.append(window.anomaly(self._store, rule, verdict))
            last = {window.group: window.start_ms for window in piece}
            changed = [
                Known(rule, self._store.id, group, state, (0, last[group]))
                for (rule, group), state in states.items()
                if before.get((rule, group)) is not state
            ]
            save_states(connection, self._schema, changed)
            insert_anomalies(connection, self._database, found, scanner_place(self._store.id))
            self._again.remember(connection, history)
            count += len(found)
        return count

    def _states(self, connection: psycopg.Connection[Any], groups: set[str]) -> dict[tuple[str, str], State]:
        return read_states(connection, self._schema, [rule.name for rule in self._rules], self._store.id, groups)
