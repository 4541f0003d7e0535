"""Judges a closed window again after late events have changed the window."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import psycopg

from tidemill_contract.resource.spec import AnomalySpec
from tidemill_contract.tables import anomalies, detectors
from tidemill_contract.windows import answer_range
from tidemill_processor.database import AggregationStore, Database
from tidemill_processor.detect.anomalies import CLEARED, Anomaly, insert_anomalies, parse_state, scanner_place
from tidemill_processor.detect.detectors import State, Verdict, as_float, judge
from tidemill_processor.keeper.duties import Duty
from tidemill_processor.keeper.skipped import store_skips
from tidemill_processor.merge.corrections import Corrections
from tidemill_processor.windows.reader import WindowReader
from tidemill_processor.windows.salvage import Salvage

KEPT_WINDOWS = 24
"""Detector states are stored for this many latest windows of each group."""


@dataclass(frozen=True)
class ClosedWindow:
    """A closed window. `group` is JSON. `metrics` is empty for a session that was merged into another session."""

    group: str
    start: str
    end: str
    metrics: dict[str, Any]
    revision: int

    @classmethod
    def from_row(cls, reader: WindowReader, row: list[Any]) -> ClosedWindow:
        """Create the window from a row of `WindowReader.read_closed` or `read_corrected`."""
        columns = dict(zip(reader.columns, row, strict=False))
        group = json.dumps({name: columns[name] for name in reader.groups}, sort_keys=True)
        start, end = columns["window_start"], columns["window_end"]
        metrics = {name: columns[name] for name in reader.metrics} if start != end else {}
        return cls(group, start, end, metrics, row[-1] if reader.has_revision else 0)

    @property
    def start_ms(self) -> int:
        """The start of the window in epoch ms."""
        return _epoch_ms(self.start)

    def anomaly(self, store: AggregationStore, rule: AnomalySpec, verdict: Verdict) -> Anomaly:
        """Return the anomaly to store for this verdict on the window."""
        identity = (store.name, store.version, rule.watched, self.group, self.start, self.end)
        lowest, highest = next(
            answer_range(metric, kind) for metric, kind in store.layout.metrics if metric.name == rule.watched
        )
        return Anomaly(rule.name, *identity, verdict.clamped(lowest, highest), self.revision)


@lru_cache(maxsize=4096)
def _epoch_ms(text: str) -> int:
    return round(dt.datetime.fromisoformat(text).timestamp() * 1000)


class Rescorer:
    """Judges the changed windows of one aggregation again, in the scanner's transaction."""

    def __init__(
        self, database: Database, store: AggregationStore, rules: list[AnomalySpec], reader: WindowReader
    ) -> None:
        self._database, self._schema = database, database.schema
        self._store, self._rules, self._reader = store, rules, reader
        self._corrections = Corrections(database, store, "scanned")
        self._duty = Duty("rescore", store.name, store.version)
        self._wall_ms = store.layout.grid.wall_ms

    def store_states(
        self, connection: psycopg.Connection[Any], before: Iterable[tuple[str, ClosedWindow, State]]
    ) -> None:
        """Store the detector state that preceded each window. A changed window is judged again with this state."""
        if self._store.layout.reopen_ms is None:
            return
        connection.cursor().executemany(
            detectors.insert_history(self._schema),
            [
                (rule, self._store.id, window.group, window.start_ms, json.dumps(state))
                for rule, window, state in before
            ],
        )

    def delete_old_states(self, connection: psycopg.Connection[Any], scanned_until: int) -> None:
        """Delete the states of windows that are too old to be judged again."""
        layout = self._store.layout
        if layout.reopen_ms is not None:
            kept_ms = layout.size_ms + KEPT_WINDOWS * (layout.gap_ms or layout.pane_ms)
            connection.execute(detectors.delete_history_before(self._schema), (self._store.id, scanned_until - kept_ms))

    def run(
        self, connection: psycopg.Connection[Any], scanned_until: int, *, skip_unreadable: bool = False
    ) -> Sequence[Anomaly]:
        """Judge the next changed windows again, and return the anomalies that were found."""
        corrected = self._corrections.read_pending(connection)
        if corrected is None:
            return ()
        span = (corrected.first_ms, corrected.last_ms, corrected.revs, scanned_until)
        salvage = Salvage(connection, self._reader, partial(self._reader.corrected_query, *span))
        rows = salvage.rows() if skip_unreadable else self._reader.read_corrected(connection, *span)
        windows = [ClosedWindow.from_row(self._reader, row) for row in rows]
        starts = [window.start_ms for window in windows]
        states, reported = self._history(connection, starts), self._reported_values(connection, starts)
        detected = []
        for window in windows:
            for rule in self._rules:
                key = (rule.name, window.group, window.start_ms)
                value, verdict = window.metrics.get(rule.watched), None
                if value is not None:
                    if key not in states:
                        continue
                    verdict, _ = judge(rule.detector, states[key], self._wall_ms(window.start_ms), as_float(value))
                if verdict is None and key in reported:
                    cleared_value = reported[key] if value is None else as_float(value)
                    verdict = Verdict(cleared_value, 0.0, CLEARED, None, None, None)
                if verdict is not None:
                    detected.append(window.anomaly(self._store, rule, verdict))
        insert_anomalies(connection, self._database, detected, scanner_place(self._store.id))
        store_skips(connection, self._schema, self._duty, salvage.skips)
        self._corrections.mark_done(connection, corrected)
        return detected

    def _history(self, connection: psycopg.Connection[Any], starts: list[int]) -> dict[tuple[str, str, int], State]:
        rows = connection.execute(detectors.history(self._schema), (self._store.id, starts))
        return {(rule, group, start): parse_state(text) for rule, group, start, text in rows}

    def _reported_values(
        self, connection: psycopg.Connection[Any], starts: list[int]
    ) -> dict[tuple[str, str, int], float]:
        rows = connection.execute(anomalies.of_windows(self._schema), (self._store.name, self._store.version, starts))
        return {
            (rule, json.dumps(group, sort_keys=True), start): value
            for rule, group, start, value, severity in rows
            if severity != CLEARED
        }
