"""Publishes results, anomalies and dead letters from Postgres to Kafka, at least once.

A row counts as published after Kafka has acknowledged the record. The process may crash before the commit in Postgres.
In this case, the record is published again with the same `id` header.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import msgspec
import psycopg

from tidemill_contract.runtime import PipelineConfig
from tidemill_contract.tables import aggregations, anomalies, dead_letters, slots
from tidemill_contract.tables.definition import NO_ELEMENT
from tidemill_contract.times import rfc3339, rfc3339_ms
from tidemill_processor import metrics
from tidemill_processor.database import AggregationStore, Database
from tidemill_processor.errors import error_text, is_permanent
from tidemill_processor.keeper.duties import Duty
from tidemill_processor.keeper.skipped import Skip, store_skips
from tidemill_processor.merge.corrections import Corrections
from tidemill_processor.publish.producer import RecordRefused, RecordSender, RejectedRecord
from tidemill_processor.windows.reader import Query, WindowReader
from tidemill_processor.windows.salvage import Salvage

log = logging.getLogger(__name__)

MAX_ROWS = 1_000
_FEW, _MANY = 5_000, 20_000
_SHRINK_FACTOR = 8

_encode = msgspec.json.Encoder().encode


class _ResultEncoder:
    """Encodes windows of one aggregation as records (key, value, headers)."""

    def __init__(self, store: AggregationStore, reader: WindowReader) -> None:
        self._name, self._id = store.name, f"{store.name}/{store.version}"
        self._at, self._revised = len(reader.groups), reader.has_revision
        self._end = -1 if reader.has_revision else None
        self._group, self._metrics = _object_encoder(reader.groups), _object_encoder(reader.metrics)
        self._head = _encode({"aggregation": store.name, "version": store.version})[:-1] + b',"group":'
        self._times: list[Any] = []
        self._middle, self._prefix = b"", ""

    def record(self, window: list[Any]) -> tuple[bytes, bytes, dict[str, str]]:
        at = self._at
        revision = window[-1] if self._revised else 0
        if [*window[at : at + 2], revision] != self._times:
            self._times = [*window[at : at + 2], revision]
            times = {"window_start": window[at], "window_end": window[at + 1], "revision": revision}
            self._middle = b"," + _encode(times)[1:-1] + b',"metrics":'
            self._prefix = f"{self._id}/{window[at]}/{revision}/"
        key = self._group(window[:at])
        value = b"".join((self._head, key, self._middle, self._metrics(window[at + 2 : self._end]), b"}"))
        return key, value, {"id": self._prefix + key.decode(), "aggregation": self._name}


def _headers_of(refused: RejectedRecord) -> dict[str, str]:
    document = msgspec.json.decode(refused.value or b"{}")
    head = f"{document['aggregation']}/{document['version']}/{document['window_start']}/{document['revision']}/"
    return {"id": head + (refused.key or b"").decode(), "aggregation": document["aggregation"]}


def _object_encoder(names: Sequence[str]) -> Callable[[Sequence[Any]], bytes]:
    fields = [f"f{number}" for number in range(len(names))]
    members = [(field, Any) for field in fields]
    members_type = msgspec.defstruct("Members", members, rename=dict(zip(fields, names, strict=True)), gc=False)
    return lambda values: _encode(members_type(*values))


class Publisher:
    """Publishes the results, anomalies and dead letters of one pipeline."""

    def __init__(
        self, database: Database, stores: list[AggregationStore], config: PipelineConfig, sender: RecordSender
    ) -> None:
        self._database, self._schema = database, database.schema
        self._topic_partitions: dict[int, tuple[str, int]] = {}
        self._config = config
        self._sender = sender
        self._stores = stores if config.spec.results.publish else []
        self._readers = {store.id: WindowReader(database, store) for store in stores}
        self._results_topic = config.topic("results")
        self._panes_per_piece = {store.id: 1 for store in stores}

    def duties(
        self, connection: psycopg.Connection[Any], closed: dict[str, int | None]
    ) -> Iterator[tuple[Duty, Callable[[], int]]]:
        """Yield the publishing tasks of the pipeline."""
        yield (duty := Duty("dead letters")), partial(self._publish_dead_letters, connection, duty)
        yield (duty := Duty("anomalies")), partial(self._publish_anomalies, connection, duty)
        for store in self._stores:
            until = closed.get(store.name)
            if until is not None:
                name, version = store.name, store.version
                yield Duty("publish", name, version), partial(self._publish_results, connection, store, until)
                if store.layout.reopen_ms is not None:
                    yield (
                        Duty("corrections", name, version),
                        partial(self._publish_corrections, connection, store, until),
                    )

    def _publish_results(self, connection: psycopg.Connection[Any], store: AggregationStore, closed_until: int) -> int:
        while True:
            panes = self._panes_per_piece[store.id]
            try:
                return self._publish_piece(connection, store, closed_until, panes)
            except Exception as error:
                self._sender.discard_unsent()
                permanent = is_permanent(error)
                if permanent or isinstance(error, psycopg.Error):
                    # Read fewer windows in the next attempt, which may avoid a timeout.
                    fewer = panes // _SHRINK_FACTOR
                    self._panes_per_piece[store.id] = fewer if permanent else max(1, fewer)
                if not permanent or panes == 0 or connection.closed:
                    raise

    def _publish_piece(
        self, connection: psycopg.Connection[Any], store: AggregationStore, closed_until: int, panes: int
    ) -> int:
        reader, duty = self._readers[store.id], Duty("publish", store.name, store.version)
        with connection.transaction():
            if not self._try_lock(connection, store):
                return 0
            row = connection.execute(aggregations.published_until(self._schema), (store.id,)).fetchone()
            if row is None or (row[0] is not None and row[0] >= closed_until):
                return 0
            # Processors with a newer configuration may write columns that this process cannot read.
            if self._database.newer_generation(connection) is not None:
                return 0
            span = reader.next_span(connection, row[0], closed_until, panes)
            until, count = closed_until, 0
            if span is not None:
                until = span.last_ms
                count = self._send(
                    connection, store, duty, partial(reader.closed_query, span), skip_unreadable=panes == 0
                )
            connection.execute(aggregations.set_published_until(self._schema), (until, store.id))
        if span is not None and count < _FEW:
            self._panes_per_piece[store.id] = min(100_000, max(1, panes * 2))
        elif count > _MANY:
            self._panes_per_piece[store.id] = max(1, panes // 2)
        metrics.RESULTS_PUBLISHED.inc(count)
        return max(count, 1 if until < closed_until else 0)

    def _publish_corrections(
        self, connection: psycopg.Connection[Any], store: AggregationStore, closed_until: int
    ) -> int:
        try:
            return self._publish_due_corrections(connection, store, closed_until, skip_unreadable=False)
        except Exception as error:
            self._sender.discard_unsent()
            if not is_permanent(error) or connection.closed:
                raise
        return self._publish_due_corrections(connection, store, closed_until, skip_unreadable=True)

    def _publish_due_corrections(
        self, connection: psycopg.Connection[Any], store: AggregationStore, closed_until: int, *, skip_unreadable: bool
    ) -> int:
        reader, corrections = self._readers[store.id], Corrections(self._database, store, "published")
        duty = Duty("corrections", store.name, store.version)
        with connection.transaction():
            corrected = corrections.read_pending(connection) if self._try_lock(connection, store) else None
            if corrected is None or self._database.newer_generation(connection) is not None:
                return 0
            span = (corrected.first_ms, corrected.last_ms, corrected.revs, closed_until)
            count = self._send(
                connection, store, duty, partial(reader.corrected_query, *span), skip_unreadable=skip_unreadable
            )
            corrections.mark_done(connection, corrected)
        metrics.RESULTS_PUBLISHED.inc(count)
        return count

    def _send(
        self,
        connection: psycopg.Connection[Any],
        store: AggregationStore,
        duty: Duty,
        query: Callable[..., Query],
        *,
        skip_unreadable: bool,
    ) -> int:
        reader, count, refused = self._readers[store.id], 0, list[RejectedRecord]()
        encoder, salvage = _ResultEncoder(store, reader), Salvage(connection, reader, query)
        for window in salvage.rows() if skip_unreadable else reader.rows(connection, query()):
            key, value, headers = encoder.record(window)
            try:
                self._sender.send(self._results_topic, key, value, headers, keep_headers=False)
            except RecordRefused as error:
                refused.append(RejectedRecord(self._results_topic, key, value, headers, error_text(error)))
            count += 1
        refused += self._sender.wait_for_acks(_headers_of)
        skips = [*salvage.skips, *(self._shorten(refusal) for refusal in refused)]
        store_skips(connection, self._schema, duty, skips)
        return count

    def _shorten(self, refused: RejectedRecord) -> Skip:
        """Publish a window that is too large for Kafka. Replace the longest metric values with null."""
        window = msgspec.json.decode(refused.value or b"{}")
        values, missing = window["metrics"], list[str]()
        at, group = window["window_start"], json.dumps(window["group"], sort_keys=True)
        for name in sorted(values, key=lambda name: len(_encode(values[name])), reverse=True):
            values[name] = None
            missing.append(name)
            try:
                self._sender.send(refused.topic, refused.key, _encode(window), refused.headers)
                if not self._sender.wait_for_acks():
                    return Skip(refused.reason, at, group=group, metrics=tuple(missing))
            except RecordRefused:
                continue
        return Skip(refused.reason, at, group=group)

    def _try_lock(self, connection: psycopg.Connection[Any], store: AggregationStore) -> bool:
        query = "SELECT pg_try_advisory_xact_lock(hashtext(%s), %s)"
        row = connection.execute(query, (f"{self._schema}/publish", store.id)).fetchone()
        return bool(row and row[0])

    def _publish_anomalies(self, connection: psycopg.Connection[Any], duty: Duty) -> int:
        sender = _SkippingSender(self._sender)
        with connection.transaction():
            rows = connection.execute(anomalies.unpublished(self._schema, MAX_ROWS)).fetchall()
            for row in rows:
                sender.send(self._config.topic("anomalies"), *_anomaly_record(row))
            if rows:
                store_skips(connection, self._schema, duty, sender.wait_for_acks())
                ids = [row[0] for row in rows]
                connection.execute(anomalies.set_published(self._schema), (ids,))
        return len(rows)

    def _publish_dead_letters(self, connection: psycopg.Connection[Any], duty: Duty) -> int:
        sender, topic = _SkippingSender(self._sender), self._config.topic("dead-letters")
        with connection.transaction():
            rows = connection.execute(dead_letters.unpublished(self._schema, MAX_ROWS)).fetchall()
            for row in rows:
                try:
                    topic_partition = self._topic_partition(connection, row[1])
                    sender.send(topic, *self._dead_letter_record(row, topic_partition))
                except (ArithmeticError, ValueError, TypeError) as error:
                    sender.skip(_dead_letter_id(row), error)
            if rows:
                store_skips(connection, self._schema, duty, sender.wait_for_acks())
                connection.cursor().executemany(dead_letters.set_published(self._schema), [row[:5] for row in rows])
        return len(rows)

    def _topic_partition(self, connection: psycopg.Connection[Any], partition: int) -> tuple[str, int]:
        if not self._config.spec.source.is_multi_topic:
            return self._config.read_topic, partition
        if partition not in self._topic_partitions:
            topic, number = connection.execute(slots.topic_partition(self._schema), (partition,)).fetchone() or (
                "",
                partition,
            )
            self._topic_partitions[partition] = topic, number
        return self._topic_partitions[partition]

    def _dead_letter_record(
        self, row: tuple[Any, ...], topic_partition: tuple[str, int]
    ) -> tuple[bytes | None, bytes | None, dict[str, str]]:
        _, _, offset, element, aggregation, why, field, detail, key, value, event_time, windows = row
        headers = {
            "reason": why, "field": field or "", "topic": topic_partition[0],
            "partition": str(topic_partition[1]), "offset": str(offset), "aggregation": aggregation,
            "detail": detail or "",
            "id": _dead_letter_id(row),
        }  # fmt: skip
        if element != NO_ELEMENT:
            headers["element"] = str(element)
        if event_time is not None:
            headers["event_time"] = rfc3339_ms(event_time)
        if windows:
            headers["windows"] = ",".join(rfc3339_ms(start) for start in windows)
        return key, value, headers


def _dead_letter_id(row: tuple[Any, ...]) -> str:
    epoch, partition, offset, element, aggregation = row[:5]
    return f"{epoch}/{partition}/{offset}{'' if element == NO_ELEMENT else f'/{element}'}/{aggregation}"


def _anomaly_record(row: tuple[Any, ...]) -> tuple[bytes, bytes, dict[str, str]]:
    (
        _, rule, aggregation, version, metric, group, start, end, value, score, expected, low, high, severity, revision,
        epoch, partition, offset, element,
    ) = row  # fmt: skip
    key = _encode(group)
    value = _encode({
        "anomaly": rule, "aggregation": aggregation, "version": version, "metric": metric, "group": group,
        "window_start": rfc3339(start), "window_end": rfc3339(end), "value": value, "score": score,
        "expected": expected, "lower": low, "upper": high, "severity": severity,
        "revision": revision, "partition": partition, "offset": offset,
        **({} if element is None else {"element": element}),
    })  # fmt: skip
    if offset is None:
        id_ = f"{rule}/{version}/{rfc3339(start)}/{revision}/{key.decode()}"
    else:
        id_ = f"{rule}/{epoch}/{partition}/{offset}{'' if element is None else f'/{element}'}"
    return key, value, {"id": id_, "anomaly": rule}


class _SkippingSender:
    """Sends independent records, and skips the records that Kafka refuses."""

    def __init__(self, sender: RecordSender) -> None:
        self._sender, self._skips = sender, list[Skip]()

    def send(self, topic: str, key: bytes | None, value: bytes | None, headers: dict[str, str]) -> None:
        try:
            self._sender.send(topic, key, value, headers)
        except RecordRefused as error:
            self.skip(headers["id"], error)

    def skip(self, id_: str, error: Exception) -> None:
        self._skips.append(Skip(f"record {id_}: {error_text(error)}"))

    def wait_for_acks(self) -> list[Skip]:
        refused = self._sender.wait_for_acks()
        return [*self._skips, *(Skip(f"record {dict(r.headers or ()).get('id')}: {r.reason}") for r in refused)]
