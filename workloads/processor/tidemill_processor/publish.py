"""Results, anomalies and dead letters to their topics, at least once, from the tables that hold them.

The tables are the outbox: closed windows never change, so a cursor (`published_until`) is all that marks them; dead
letters and anomalies carry a mark each. A mark moves only when Kafka has acknowledged; a crash before that publishes
again, under the same deterministic `id` header, by which readers drop repeats.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import psycopg

from tidemill_contract import metrics
from tidemill_contract.runtime import PipelineConfig
from tidemill_contract.times import rfc3339, rfc3339_ms
from tidemill_processor.database import AggregationStore, Database
from tidemill_processor.windows import WindowReader

log = logging.getLogger(__name__)

MARKED_ROWS = 1_000
FLUSH_SECONDS = 8.0
_FEW, _MANY = 5_000, 20_000


_encode = msgspec.json.Encoder().encode


class PublishFailed(Exception):
    """Kafka did not acknowledge everything; the marks stay where they were."""


class Outlet:
    """A producer that knows whether all it was given was acknowledged."""

    def __init__(self, producer: Any) -> None:
        self._producer = producer
        self._error: Any = None

    def send(self, topic: str, key: bytes, value: dict[str, Any], headers: dict[str, str]) -> None:
        """Queue one JSON record."""
        self.send_raw(topic, key, _encode(value), headers)

    def send_raw(self, topic: str, key: bytes | None, value: bytes | None, headers: dict[str, str]) -> None:
        """Queue one record as it is."""
        self._producer.produce(
            topic,
            value=value,
            key=key,
            headers=headers,
            on_delivery=self._delivered,
            poll_timeout=0,
            buffer_error_max_tries=3,
        )

    def _delivered(self, error: Any, message: Any) -> None:
        if error is not None:
            self._error = error

    def settle(self) -> None:
        """Wait until all is acknowledged.

        Raises:
            PublishFailed: something was not, within a few seconds.
        """
        left = self._producer.flush(FLUSH_SECONDS)
        error, self._error = self._error, None
        if error is not None or left:
            raise PublishFailed(
                str(error) if error is not None else f"{left} records not acknowledged in {FLUSH_SECONDS} s"
            )


class Publisher:
    """Publishes one pipeline's outputs."""

    def __init__(
        self, database: Database, stores: list[AggregationStore], config: PipelineConfig, outlet: Outlet
    ) -> None:
        self._database, self._schema = database, database.schema
        self._config = config
        self._outlet = outlet
        self._stores = stores if config.spec.results.publish else []
        self._readers = {store.id: WindowReader(database, store) for store in stores}
        self._spans = {store.id: 1 for store in stores}

    def run(self, connection: psycopg.Connection[Any], closed: dict[str, int | None]) -> int:
        """One pass over everything unpublished, a bounded piece each; the number of records published.

        Raises:
            PublishFailed: Kafka is not taking them.
        """
        published = self._dead_letters(connection) + self._anomalies(connection)
        for store in self._stores:
            until = closed.get(store.name)
            if until is not None:
                published += self._results(connection, store, until)
        return published

    def _results(self, connection: psycopg.Connection[Any], store: AggregationStore, closed_until: int) -> int:
        reader, plan = self._readers[store.id], store.layout
        with connection.transaction():
            row = connection.execute(
                f"SELECT published_until, pg_try_advisory_xact_lock(hashtext(%s), id) FROM {self._schema}._aggregations"
                " WHERE id = %s",
                (f"{self._schema}/publish", store.id),
            ).fetchone()
            if row is None or not row[1] or (row[0] is not None and row[0] >= closed_until):
                return 0
            # From that generation on other columns may be fed: windows closed since then are its processors' to read.
            if self._database.newer_generation(connection) is not None:
                return 0
            start, until, count = reader.next_start(connection, row[0], closed_until), closed_until, 0
            if start is not None:
                first = start - plan.size_ms + plan.pane_ms
                if row[0] is not None:
                    first = max(first, row[0] - plan.size_ms + plan.pane_ms)
                last = min(first + self._spans[store.id] * plan.pane_ms, closed_until - plan.size_ms)
                until = last + plan.size_ms
                for window in reader.read(connection, first, last):
                    self._send_result(store, reader, window)
                    count += 1
                self._outlet.settle()
                if count < _FEW:
                    self._spans[store.id] = min(100_000, self._spans[store.id] * 2)
                elif count > _MANY:
                    self._spans[store.id] = max(1, self._spans[store.id] // 2)
            connection.execute(
                f"UPDATE {self._schema}._aggregations SET published_until = %s WHERE id = %s", (until, store.id)
            )
        metrics.RESULTS_PUBLISHED.inc(count)
        return max(count, 1 if until < closed_until else 0)

    def _send_result(self, store: AggregationStore, reader: WindowReader, window: dict[str, Any]) -> None:
        group = {name: window.pop(name) for name in reader.groups}
        key = _encode(group)
        start, end = window.pop("window_start"), window.pop("window_end")
        value = {
            "aggregation": store.name, "version": store.version, "group": group, "window_start": start,
            "window_end": end, "revision": 0, "metrics": window,
        }  # fmt: skip
        headers = {"id": f"{store.name}/{store.version}/{start}/0/{key.decode()}", "aggregation": store.name}
        self._outlet.send(self._config.topic("results"), key, value, headers)

    def _anomalies(self, connection: psycopg.Connection[Any]) -> int:
        with connection.transaction():
            rows = connection.execute(
                "SELECT id, anomaly, aggregation, version, metric, group_key, window_start, window_end, value, score,"
                f" expected, lower, upper, revision FROM {self._schema}._anomalies WHERE NOT published"
                f" ORDER BY id LIMIT {MARKED_ROWS}"
                " FOR UPDATE SKIP LOCKED"
            ).fetchall()
            for (
                _,
                rule,
                aggregation,
                version,
                metric,
                group,
                start,
                end,
                value,
                score,
                expected,
                low,
                high,
                revision,
            ) in rows:
                key = msgspec.json.encode(group)
                record = {
                    "anomaly": rule, "aggregation": aggregation, "version": version, "metric": metric, "group": group,
                    "window_start": rfc3339(start), "window_end": rfc3339(end), "value": value, "score": score,
                    "expected": expected, "lower": low, "upper": high, "revision": revision,
                }  # fmt: skip
                headers = {"id": f"{rule}/{version}/{rfc3339(start)}/{revision}/{key.decode()}", "anomaly": rule}
                self._outlet.send(self._config.topic("anomalies"), key, record, headers)
            if rows:
                self._outlet.settle()
                ids = [row[0] for row in rows]
                connection.execute(f"UPDATE {self._schema}._anomalies SET published = true WHERE id = ANY(%s)", (ids,))
        return len(rows)

    def _dead_letters(self, connection: psycopg.Connection[Any]) -> int:
        with connection.transaction():
            rows = connection.execute(
                'SELECT epoch, partition, "offset", aggregation, reason, field, detail, key, value, event_time, windows'
                f" FROM {self._schema}._dead_letters WHERE NOT published"
                f' ORDER BY epoch, partition, "offset" LIMIT {MARKED_ROWS}'
                " FOR UPDATE SKIP LOCKED"
            ).fetchall()
            for epoch, partition, offset, aggregation, reason, field, detail, key, value, event_time, windows in rows:
                headers = {
                    "reason": reason, "field": field or "", "topic": self._config.events_topic,
                    "partition": str(partition), "offset": str(offset), "aggregation": aggregation,
                    "detail": detail or "",
                    "id": f"{epoch}/{partition}/{offset}/{aggregation}",
                }  # fmt: skip
                if event_time is not None:
                    headers["event_time"] = rfc3339_ms(event_time)
                if windows:
                    headers["windows"] = ",".join(rfc3339_ms(start) for start in windows)
                self._outlet.send_raw(self._config.topic("dead-letters"), key, value, headers)
            if rows:
                self._outlet.settle()
                connection.cursor().executemany(
                    f"UPDATE {self._schema}._dead_letters SET published = true"
                    ' WHERE epoch = %s AND partition = %s AND "offset" = %s AND aggregation = %s',
                    [row[:4] for row in rows],
                )
        return len(rows)
