"""Reads the rows of a lookup from a compacted topic, and applies new records when they arrive."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import polars as pl
from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec

from tidemill_chassis.kafka_clients import FAST_RECONNECT, platform_connection
from tidemill_contract import names
from tidemill_contract.events.decoder import EventDecoder
from tidemill_contract.events.fields import with_fields
from tidemill_contract.events.formats.texts import as_json
from tidemill_contract.events.invalid_events import InvalidEvent
from tidemill_contract.resource.lookups.model import LookupSpec
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import PipelineConfig, WorkloadSettings
from tidemill_processor.formats.columns import as_column
from tidemill_processor.lookups.rows import PIECE_BYTES, PIECE_ROWS, RowDecoder, key_field, row_spec
from tidemill_processor.lookups.table import DELETED, KEY, LookupFault, Table, TableBuilder
from tidemill_processor.source.topic_admin import describe_topic, result_of

log = logging.getLogger(__name__)

REQUEST_SECONDS, POLL_SECONDS, CHECK_SECONDS = 5.0, 0.25, 2.0
"""The timeout of a request, the maximum wait for records, and the interval between reads of the topic's ends, in
seconds.
"""
_RECORDS = 500
_MAX_UNREADABLE = 1_000


class _TopicChanged(Exception):
    """Raised if the topic has to be read from the start again."""


class TopicReader:
    """Decodes the records of a lookup's topic."""

    def __init__(self, spec: PipelineSpec, lookup: LookupSpec) -> None:
        self._rows = RowDecoder(spec, lookup, row_spec(spec, lookup, keyed=False))
        self._field = key_field(spec, lookup)
        self._keys = EventDecoder(with_fields(spec, [self._field], strict=False, format=None, key=None))
        self.schema = self._rows.schema
        self.unreadable: dict[bytes, str] = {}

    def changes(self, records: Sequence[Message]) -> pl.DataFrame:
        """Return the changes that the records make to the rows. An unreadable record deletes the row of its key."""
        keys = self._keys_of(records)
        keyed = [index for index, key in enumerate(keys) if key is not None]
        with_value = [index for index in keyed if records[index].value() is not None]
        decoded, faults = self._rows.decode([records[index].value() or b"" for index in with_value])
        errors = {with_value[index]: text for index, text in faults.items()}
        valid = [index for index in with_value if index not in errors]
        deleted = [index for index in keyed if records[index].value() is None or index in errors]
        for index in keyed:
            self._set_error(records[index], errors.get(index))
        dtype = self.schema[KEY]
        updated_rows = decoded.insert_column(0, as_column(KEY, [keys[index] for index in valid], dtype))
        deleted_rows = pl.DataFrame([as_column(KEY, [keys[index] for index in deleted], dtype)])
        order = pl.Series("?at", [*valid, *deleted], dtype=pl.UInt32)
        changes = [
            updated_rows.with_columns(pl.lit(False).alias(DELETED)),
            deleted_rows.with_columns(pl.lit(True).alias(DELETED)),
        ]
        return pl.concat(changes, how="diagonal").with_columns(order).sort("?at").drop("?at")

    def _keys_of(self, records: Sequence[Message]) -> list[Any]:
        documents = []
        for record in records:
            try:
                key = as_json(_key(record), self._field) if record.key() else b"null"
            except InvalidEvent:
                key = b"[]"  # an array is never a valid key, so the record will be refused
            documents.append(msgspec.json.encode({self._field.name: msgspec.Raw(key)}))
        decoded = self._keys.decode_all(documents, 0)
        valid = iter(self._keys.values([e for e in decoded.events if e is not None], self._field.name))
        keys = [None if event is None else next(valid) for event in decoded.events]
        for index, value in enumerate(keys):
            if value is None:
                verdict = decoded.invalid.get(index)
                kind = self._field.type
                text = "has no key" if verdict is None else f"its key is not a valid {kind} in text form"
                self._set_error(records[index], f"{text}; write the record's key as {kind} in text form")
        return keys

    def _set_error(self, record: Message, fault: str | None) -> None:
        key = _key(record)
        self.unreadable.pop(key, None)
        if fault is not None and len(self.unreadable) < _MAX_UNREADABLE:
            self.unreadable[key] = f"partition {record.partition()}, offset {record.offset()}: {fault}"


def _key(record: Message) -> bytes:
    key: Any = record.key()
    return bytes(key or b"")


class TopicLookup:
    """Follows the topic of one lookup in a separate thread.

    Attributes:
        source_name: the name of the topic, for logs and errors.
        table: the rows, or None before the topic was read to the end for the first time.
        confirmed_at: when the topic last had no unread records (monotonic seconds).
        error: why the rows may be outdated, or an empty string.
        unreadable: a message about the records that could not be read, or an empty string.
        stale_seconds: the age in seconds after which the rows count as outdated.
    """

    stale_seconds = 15.0

    def __init__(self, config: PipelineConfig, lookup: LookupSpec, settings: WorkloadSettings) -> None:
        self._topic = lookup.source.topic or ""
        self._connection = {"log_level": 3, **FAST_RECONNECT, **platform_connection(settings)}
        # The client needs a group name, but no offsets are stored in the group.
        self._group = names.consumer_group(config.namespace, config.name, f"lookup-{lookup.name}")
        self._reader: Callable[[], TopicReader] = lambda: TopicReader(config.spec, lookup)
        self.source_name = f"Kafka {settings.kafka_brokers}, topic {self._topic}"
        self.table: Table | None = None
        self.confirmed_at = 0.0
        self.error = self.unreadable = ""

    def run(self, stopping: threading.Event) -> None:
        """Follow the topic until stopped."""
        while not stopping.is_set():
            try:
                self._follow(stopping)
            except _TopicChanged as change:
                log.info("lookup: %s: %s; the topic is read from the start", self.source_name, change)
            except LookupFault as fault:
                self.error = str(fault)
                log.warning("lookup: %s: %s", self.source_name, fault)
                stopping.wait(CHECK_SECONDS * 10)
            except (KafkaException, OSError) as error:
                self.error = self._describe_error(error)
                stopping.wait(CHECK_SECONDS)

    def _follow(self, stopping: threading.Event) -> None:
        admin = AdminClient(self._connection)
        topic_id, count = describe_topic(admin, self._topic)
        reader = self._reader()
        builder = TableBuilder(reader.schema)
        next_offsets = dict.fromkeys(range(count), 0)
        consumer = Consumer(
            {
                **self._connection,
                "group.id": self._group,
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
            }
        )
        try:
            consumer.assign([TopicPartition(self._topic, p, 0) for p in next_offsets])
            checked_at, complete = 0.0, False
            while not stopping.is_set():
                records = self._records(_consume(consumer), next_offsets)
                if records:
                    builder.apply(reader.changes(records))
                    if complete:
                        self.table = builder.snapshot()
                if time.monotonic() - checked_at >= (CHECK_SECONDS if complete else POLL_SECONDS):
                    checked_at = time.monotonic()
                    if self._is_complete(admin, topic_id, next_offsets):
                        complete, self.confirmed_at = True, checked_at
                        self.table = builder.snapshot()
                        self.error, self.unreadable = "", _unreadable(reader.unreadable)
        finally:
            with contextlib.suppress(RuntimeError, KafkaException):
                consumer.close()

    def _describe_error(self, error: Exception) -> str:
        if not isinstance(error, KafkaException) or not isinstance(error.args[0], KafkaError):
            return str(error)
        kafka_error = error.args[0]
        if kafka_error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return f"there is no topic {self._topic}; create it, or correct from.topic"
        if kafka_error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            return f"the platform's user may not read the topic {self._topic}; allow it Read and Describe"
        return str(kafka_error.str() or kafka_error.name())

    def _records(self, messages: Sequence[Message], next_offsets: dict[int, int]) -> list[Message]:
        records = []
        for message in messages:
            error, partition, offset = message.error(), message.partition() or 0, message.offset() or 0
            if error is None:
                records.append(message)
                next_offsets[partition] = offset + 1
            elif error.code() == KafkaError._PARTITION_EOF:
                next_offsets[partition] = max(next_offsets[partition], offset)
            else:
                self.error = error.str()
        return records

    def _is_complete(self, admin: AdminClient, topic_id: str, next_offsets: Mapping[int, int]) -> bool:
        try:
            if describe_topic(admin, self._topic) != (topic_id, len(next_offsets)):
                raise _TopicChanged("the topic was created again, or its partitions changed")
            requests = {TopicPartition(self._topic, p): OffsetSpec.latest() for p in next_offsets}
            level = IsolationLevel.READ_COMMITTED
            futures = admin.list_offsets(requests, isolation_level=level, request_timeout=REQUEST_SECONDS)
            ends = {partition.partition: result_of(future).offset for partition, future in futures.items()}
        except KafkaException as error:
            self.error = self._describe_error(error)
            return False
        return all(0 <= end <= next_offsets[partition] for partition, end in ends.items())


def _consume(consumer: Consumer) -> list[Message]:
    messages: list[Message] = consumer.consume(_RECORDS, POLL_SECONDS)
    size = sum(map(len, messages))
    while messages and len(messages) < PIECE_ROWS and size < PIECE_BYTES and (more := consumer.consume(_RECORDS, 0)):
        messages += more
        size += sum(map(len, more))
    return messages


def _unreadable(errors: dict[bytes, str]) -> str:
    if not errors:
        return ""
    return (
        f"keys without a row, because their last record cannot be read: {len(errors)}; {errors[next(reversed(errors))]}"
    )
