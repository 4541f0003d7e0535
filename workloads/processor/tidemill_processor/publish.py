"""Results, anomalies and dead letters to their topics, at least once, from the tables that hold them.

The tables are the outbox: a cursor (`published_until`) marks closed windows; those that late events changed afterwards
are noted in `_corrections`; dead letters and anomalies carry a mark each. A mark moves only when Kafka has
acknowledged; a crash before that publishes again, under the same deterministic `id` header, by which readers drop
repeats.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import psycopg
from confluent_kafka import KafkaException, Producer

from tidemill_contract import metrics
from tidemill_contract.runtime import PipelineConfig
from tidemill_contract.times import rfc3339, rfc3339_ms
from tidemill_processor.corrections import Corrections
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
    """A producer that knows whether all it was given was acknowledged; one that met a fatal error is replaced.

    Args:
        make: a new producer.
    """

    def __init__(self, make: Callable[[], Producer]) -> None:
        self._make, self._producer = make, make()
        self._error: Any = None

    def send(self, topic: str, key: bytes, value: dict[str, Any], headers: dict[str, str]) -> None:
        """Queue one JSON record."""
        self.send_raw(topic, key, _encode(value), headers)

    def send_raw(self, topic: str, key: bytes | None, value: bytes | None, headers: dict[str, str]) -> None:
        """Queue one record as it is; waits while the queue is full.

        Raises:
            PublishFailed: it stays full, or the producer does not work any more.
        """
        try:
            self._producer.produce(topic, value, key, headers=headers, on_delivery=self._delivered)
        except BufferError:
            self.settle()
            self.send_raw(topic, key, value, headers)
        except KafkaException as error:
            if error.args[0].fatal():
                self._producer = self._make()
            raise PublishFailed(error.args[0].str()) from None

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


class _ResultEncoder:
    """Windows of one aggregation as records: (key, value, headers).

    A window's value is {aggregation, version, group, window_start, window_end, revision, metrics}. What is the same for
    all windows of the same time is encoded once, and the group, which is the key, not twice.
    """

    def __init__(self, store: AggregationStore, reader: WindowReader) -> None:
        self._name, self._id = store.name, f"{store.name}/{store.version}"
        self._at, self._revised = len(reader.groups), reader.revised
        self._group, self._metrics = _object_encoder(reader.groups), _object_encoder(reader.metrics)
        self._head = _encode({"aggregation": store.name, "version": store.version})[:-1] + b',"group":'
        self._times: list[Any] = []
        self._middle, self._prefix = b"", ""

    def record(self, window: list[Any]) -> tuple[bytes, bytes, dict[str, str]]:
        """The record of a window, a row of `WindowReader.closed` or `corrected`."""
        at = self._at
        revision = window.pop() if self._revised else 0
        if [*window[at : at + 2], revision] != self._times:
            self._times = [*window[at : at + 2], revision]
            times = {"window_start": window[at], "window_end": window[at + 1], "revision": revision}
            self._middle = b"," + _encode(times)[1:-1] + b',"metrics":'
            self._prefix = f"{self._id}/{window[at]}/{revision}/"
        key = self._group(window[:at])
        value = b"".join((self._head, key, self._middle, self._metrics(window[at + 2 :]), b"}"))
        return key, value, {"id": self._prefix + key.decode(), "aggregation": self._name}


def _object_encoder(names: Sequence[str]) -> Callable[[Sequence[Any]], bytes]:
    """Encodes values as a JSON object with members of these names; a struct is made in half the time of a dict."""
    fields = [f"f{number}" for number in range(len(names))]
    members = [(field, Any) for field in fields]
    made = msgspec.defstruct("Members", members, rename=dict(zip(fields, names, strict=True)), gc=False)
    return lambda values: _encode(made(*values))


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
        self._results_topic = config.topic("results")
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
                published += self._results(connection, store, until) + self._corrections(connection, store, until)
        return published

    def _results(self, connection: psycopg.Connection[Any], store: AggregationStore, closed_until: int) -> int:
        reader = self._readers[store.id]
        with connection.transaction():
            if not self._locked(connection, store):
                return 0
            row = connection.execute(
                f"SELECT published_until FROM {self._schema}._aggregations WHERE id = %s", (store.id,)
            ).fetchone()
            if row is None or (row[0] is not None and row[0] >= closed_until):
                return 0
            # From that generation on other columns may be fed: windows closed since then are its processors' to read.
            if self._database.newer_generation(connection) is not None:
                return 0
            span = reader.span(connection, row[0], closed_until, self._spans[store.id])
            until, count = closed_until, 0
            if span is not None:
                until, encoder = span.last_ms, _ResultEncoder(store, reader)
                for window in reader.closed(connection, span):
                    key, value, headers = encoder.record(window)
                    self._outlet.send_raw(self._results_topic, key, value, headers)
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

    def _corrections(self, connection: psycopg.Connection[Any], store: AggregationStore, closed_until: int) -> int:
        """Publish closed windows that late events changed, under their new revision."""
        reader, count, noted = self._readers[store.id], 0, Corrections(self._database, store, "published")
        with connection.transaction():
            corrected = noted.due(connection) if self._locked(connection, store) else None
            if corrected is None or self._database.newer_generation(connection) is not None:
                return 0
            encoder = _ResultEncoder(store, reader)
            span = (corrected.first_ms, corrected.last_ms, corrected.revs, closed_until)
            for window in reader.corrected(connection, *span):
                key, value, headers = encoder.record(window)
                self._outlet.send_raw(self._results_topic, key, value, headers)
                count += 1
            self._outlet.settle()
            noted.done(connection, corrected)
        metrics.RESULTS_PUBLISHED.inc(count)
        return count

    def _locked(self, connection: psycopg.Connection[Any], store: AggregationStore) -> bool:
        """Whether this process alone publishes the aggregation's results, in this transaction."""
        query = "SELECT pg_try_advisory_xact_lock(hashtext(%s), %s)"
        row = connection.execute(query, (f"{self._schema}/publish", store.id)).fetchone()
        return bool(row and row[0])

    def _anomalies(self, connection: psycopg.Connection[Any]) -> int:
        with connection.transaction():
            rows = connection.execute(
                "SELECT id, anomaly, aggregation, version, metric, group_key, window_start, window_end, value, score,"
                ' expected, lower, upper, severity, revision, epoch, partition, "offset"'
                f" FROM {self._schema}._anomalies WHERE NOT published ORDER BY id LIMIT {MARKED_ROWS}"
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
                severity,
                revision,
                epoch,
                partition,
                offset,
            ) in rows:
                key = msgspec.json.encode(group)
                record = {
                    "anomaly": rule, "aggregation": aggregation, "version": version, "metric": metric, "group": group,
                    "window_start": rfc3339(start), "window_end": rfc3339(end), "value": value, "score": score,
                    "expected": expected, "lower": low, "upper": high, "severity": severity,
                    "revision": revision, "partition": partition, "offset": offset,
                }  # fmt: skip
                if offset is None:
                    id_ = f"{rule}/{version}/{rfc3339(start)}/{revision}/{key.decode()}"
                else:
                    id_ = f"{rule}/{epoch}/{partition}/{offset}"
                self._outlet.send(self._config.topic("anomalies"), key, record, {"id": id_, "anomaly": rule})
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
