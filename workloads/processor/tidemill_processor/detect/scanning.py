"""Anomaly rules over closed windows.

Anomaly rules have judged all windows that end at or before `scanned_until`. One transaction stores `scanned_until`,
detector states and anomalies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import psycopg

from tidemill_contract.resource.spec import AnomalySpec
from tidemill_contract.tables import aggregations
from tidemill_processor import metrics
from tidemill_processor.database import AggregationStore, Database
from tidemill_processor.detect.anomalies import (
    Anomaly,
    DetectorState,
    count_by_rule,
    insert_anomalies,
    read_states,
    save_states,
    scanner_place,
)
from tidemill_processor.detect.detectors import State, Verdict, as_float, judge
from tidemill_processor.detect.rescoring import ClosedWindow, Rescorer
from tidemill_processor.errors import error_text, is_permanent
from tidemill_processor.keeper.duties import Duty
from tidemill_processor.keeper.skipped import Skip, store_skips
from tidemill_processor.windows.reader import Span, WindowReader
from tidemill_processor.windows.salvage import Salvage

SPAN_PANES = 64
"""The maximum number of panes (parts of hopping windows) to read in one transaction."""
PIECE_WINDOWS = 2_000
_SHRINK_FACTOR = 8


class Scanner:
    """Runs the anomaly rules of one aggregation."""

    def __init__(self, database: Database, store: AggregationStore, rules: list[AnomalySpec]) -> None:
        self._database, self._schema = database, database.schema
        self.store = self._store = store
        self._rules = rules
        self._reader = WindowReader(database, store)
        self._rescorer = Rescorer(database, store, rules, self._reader)
        self._panes = SPAN_PANES
        self._duty = Duty("scan", store.name, store.version)

    def rescore(self, connection: psycopg.Connection[Any], closed_until: int) -> int:
        """Judge the changed windows again, and return the number of stored anomalies."""
        if self._store.layout.reopen_ms is None:
            return 0
        try:
            return self._rescore(connection, closed_until, skip_unreadable=False)
        except Exception as error:
            if not is_permanent(error) or connection.closed:
                raise
        return self._rescore(connection, closed_until, skip_unreadable=True)

    def _rescore(self, connection: psycopg.Connection[Any], closed_until: int, *, skip_unreadable: bool) -> int:
        with connection.transaction():
            locked, until = self._try_lock(connection)
            if not locked or until is None:
                return 0
            anomalies = self._rescorer.run(connection, min(until, closed_until), skip_unreadable=skip_unreadable)
        metrics.count_anomalies(self._database.pipeline, count_by_rule(anomalies))
        return len(anomalies)

    def run(self, connection: psycopg.Connection[Any], closed_until: int) -> int:
        """Detect anomalies in the windows that were closed since the last scan. Return the number of anomalies."""
        while True:
            try:
                counts = self._advance(connection, closed_until)
            except Exception as error:
                panes, permanent = self._panes, is_permanent(error)
                if permanent or isinstance(error, psycopg.Error):
                    # Read fewer panes in the next attempt, which may avoid a timeout.
                    self._panes = panes // _SHRINK_FACTOR if permanent else max(1, panes // _SHRINK_FACTOR)
                if not permanent or panes == 0 or connection.closed:
                    raise
            else:
                self._panes = min(SPAN_PANES, max(1, self._panes * 2))
                metrics.count_anomalies(self._database.pipeline, counts)
                return counts.total()

    def _try_lock(self, connection: psycopg.Connection[Any]) -> tuple[bool, int | None]:
        """Try to get the aggregation's scan lock, which the transaction holds until its end.

        Return whether to scan, and the stored `scanned_until`.
        """
        row = connection.execute(
            aggregations.lock_scan(self._schema),
            (f"{self._schema}/scan", self._store.id),
        ).fetchone()
        # Processors with a newer configuration may write columns that this process cannot read.
        if row is None or not row[1] or self._database.newer_generation(connection) is not None:
            return False, None
        return True, row[0]

    def _advance(self, connection: psycopg.Connection[Any], closed_until: int) -> Counter[str]:
        with connection.transaction():
            locked, scanned_until = self._try_lock(connection)
            if not locked or (scanned_until is not None and scanned_until >= closed_until):
                return Counter()
            # Hopping windows share panes: n windows have n + layout.panes - 1 panes.
            panes = self._panes + self._store.layout.panes - 1 if self._panes else 0
            span = self._reader.next_span(connection, scanned_until, closed_until, panes)
            until, counts = closed_until, Counter[str]()
            if span is not None:
                until, counts = span.last_ms, self._scan(connection, span, skip_unreadable=self._panes == 0)
            connection.execute(aggregations.set_scanned_until(self._schema), (until, self._store.id))
            self._rescorer.delete_old_states(connection, until)
        return counts

    def _scan(self, connection: psycopg.Connection[Any], span: Span, *, skip_unreadable: bool) -> Counter[str]:
        salvage = Salvage(connection, self._reader, partial(self._reader.closed_query, span))
        rows = salvage.rows() if skip_unreadable else self._reader.read_closed(connection, span)
        count, skips = Counter[str](), list[Skip]()
        windows: Iterator[ClosedWindow] = (ClosedWindow.from_row(self._reader, row) for row in rows)
        while piece := list(islice(windows, PIECE_WINDOWS)):
            before = self._states(connection, {window.group for window in piece})
            states, history = dict(before), []
            anomalies: list[Anomaly] = []
            for window in piece:
                for rule in self._rules:
                    value = window.metrics[rule.watched]
                    if value is None:
                        continue
                    state = states.get((rule.name, window.group), {})
                    history.append((rule.name, window, state))
                    verdict, states[rule.name, window.group] = self._judge(rule, state, window, skips)
                    if verdict is not None:
                        anomalies.append(window.anomaly(self._store, rule, verdict))
            last = {window.group: window.start_ms for window in piece}
            changed = [
                DetectorState(rule, self._store.id, group, state, (0, last[group]))
                for (rule, group), state in states.items()
                if before.get((rule, group)) is not state
            ]
            save_states(connection, self._schema, changed)
            insert_anomalies(connection, self._database, anomalies, scanner_place(self._store.id))
            self._rescorer.store_states(connection, history)
            count += count_by_rule(anomalies)
        store_skips(connection, self._schema, self._duty, [*salvage.skips, *skips])
        return count

    def _judge(
        self, rule: AnomalySpec, state: State, window: ClosedWindow, skips: list[Skip]
    ) -> tuple[Verdict | None, State]:
        value = window.metrics[rule.watched]
        try:
            return judge(rule.detector, state, self._store.layout.grid.wall_ms(window.start_ms), as_float(value))
        except Exception as error:
            why = f"detector {rule.name}: {error_text(error)}"
            skips.append(Skip(why, window.start, group=window.group, metrics=(rule.watched,)))
            return None, state

    def _states(self, connection: psycopg.Connection[Any], groups: set[str]) -> dict[tuple[str, str], State]:
        return read_states(connection, self._schema, [rule.name for rule in self._rules], self._store.id, groups)
