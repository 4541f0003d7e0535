"""The loop: consumes a micro-batch, stores it, and repeats."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Sequence

import psycopg

from tidemill_chassis.resilience.config import Guards
from tidemill_contract.duration import parse_ms
from tidemill_contract.runtime import PipelineConfig
from tidemill_contract.tables.readers import LIVE
from tidemill_processor import metrics
from tidemill_processor.assignment import Assignment
from tidemill_processor.batches.batch import Batch
from tidemill_processor.batches.exploding import batch_reader
from tidemill_processor.batches.piece import Piece
from tidemill_processor.batches.side_inputs import SideInputs
from tidemill_processor.database import Database
from tidemill_processor.database_link import DatabaseLink
from tidemill_processor.dead_letters import Message
from tidemill_processor.formats.registry import RegistryUnavailableError
from tidemill_processor.merge.bisection import reject_unstorable
from tidemill_processor.replay import ReplayOptions, Throttle
from tidemill_processor.source.consumer import PollResult, Source
from tidemill_processor.source.kafka_health import KafkaHealth
from tidemill_processor.transaction import Change, CommitResult, Fenced, Superseded, is_refusal

log = logging.getLogger(__name__)

MAX_BATCH_EVENTS = 50_000
# The maximum size of a batch in bytes, which limits the memory for a batch.
BATCH_BYTES = 32 * 1024 * 1024
# The number of events to consume and decode together, few enough for the CPU's cache.
MAX_PIECE_EVENTS = 4_000
# The interval between garbage collections.
COLLECT_SECONDS = 10.0
PAUSED_POLL_SECONDS = 0.1
# The maximum wait for records. A short wait lets the loop stop quickly.
POLL_SECONDS = 0.5


def count_commit(pipeline: str, batch: Batch, committed: CommitResult, seconds: float) -> None:
    """Count a committed batch in the Prometheus metrics."""
    metrics.EVENTS_CONSUMED.inc(len(batch.messages))
    metrics.BATCH_EVENTS.observe(len(batch.messages))
    metrics.BATCH_SECONDS.observe(seconds)
    metrics.FRESHNESS_SECONDS.observe(max(0.0, time.time() - min(batch.arrived.values()) / 1000))
    metrics.count_anomalies(pipeline, committed.anomalies)
    if batch.filtered:
        metrics.EVENTS_FILTERED.inc(sum(batch.filtered.values()))
    if committed.duplicates:
        metrics.DUPLICATES.inc(committed.duplicates)
    for letter in batch.dead_letters:
        metrics.DEAD_LETTERS.labels(reason=letter.reason).inc()
    for (aggregation, policy), number in committed.late.items():
        metrics.EVENTS_LATE.labels(aggregation=aggregation, policy=policy).inc(number)


class Loop:
    """Processes one pipeline's events until stopped."""

    def __init__(
        self,
        config: PipelineConfig,
        database: Database,
        source: Source,
        guards: Guards,
        on_commit: Callable[[tuple[Change, ...]], None],
        *,
        replay: ReplayOptions,
        side_inputs: SideInputs,
    ) -> None:
        self._config = config
        self._source = source
        self._on_commit = on_commit
        self._side_inputs = side_inputs
        self._reader = batch_reader(
            config.spec,
            offsets=database.reader != LIVE,
            registry=side_inputs.registry,
            lookups=side_inputs.lookups,
        )
        # The average number of events in a record.
        self._events_per_record = 1
        self._undecoded: Sequence[Message] = ()
        self._waiting_partitions: set[int] = set()
        self._throttle = Throttle(replay.rate)
        # Anomaly rules over single events are slow, so use smaller batches.
        self._limit = MAX_BATCH_EVENTS // (1 + sum(rule.field is not None for rule in config.spec.anomalies))
        self._flush_seconds = parse_ms(config.spec.processor.flush_interval) / 1000
        self.kafka = KafkaHealth(guards.kafka_consumer, source.replace_consumer)
        self.link = DatabaseLink(config, database, guards.database, source.pause)
        self.assignment = Assignment(config, database, source, self.kafka, self.link, replay.start_from)
        self._collected_at = 0.0
        self._stopping = False
        self.superseded_reason = ""
        self._progressed_at = time.monotonic()

    @property
    def alive_at(self) -> float:
        """The time of the last progress (monotonic seconds)."""
        return max(self._progressed_at, self._source.heard_at, self.link.heard_at)

    def stop(self) -> None:
        """Let the loop end after the current round."""
        self._stopping = True

    def run(self) -> None:
        """Repeat rounds until stopped, then leave the consumer group."""
        self._source.subscribe()
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            while not self._stopping:
                self._run_round()
                self._progressed_at = time.monotonic()
                self.link.end_round()
                self._collect_garbage()
        finally:
            gc.enable()
            self.assignment.report_positions(force=True)
            self._source.close()
            self.link.close()

    def _run_round(self) -> None:
        self._side_inputs.begin_round()
        if self._can_store():
            self.assignment.start_reading(self._waiting_for_schemas())
        else:
            self._source.pause()
        pieces = self._gather(self._flush_seconds if self._source.ready else PAUSED_POLL_SECONDS)
        self.assignment.apply_rebalance()
        ready = self._source.ready
        if pieces:
            self._process(pieces)
        while self._undecoded:
            self._process_undecoded(ready)
        if not self.superseded_reason:
            self.assignment.hand_over()
        self.assignment.confirm_ends()
        self.assignment.report_positions()

    def _process_undecoded(self, ready: frozenset[int]) -> None:
        if self._stopping or self.superseded_reason or self._source.ready != ready:
            self._source.pause()
            self._undecoded = ()
            return
        pieces, self._undecoded = self._decode(self._undecoded, 0, self._throttle.limit(self._limit))
        if pieces:
            self._process(pieces)
        self._progressed_at = time.monotonic()
        self._side_inputs.begin_round()

    def _gather(self, seconds: float) -> list[Piece]:
        pieces: list[Piece] = []
        count, size, generation, deadline = 0, 0, self._source.generation, time.monotonic() + seconds
        limit = self._throttle.limit(self._limit)
        while count < limit and size < BATCH_BYTES and not self._stopping:
            seconds_left = deadline - time.monotonic()
            if seconds_left <= 0 and pieces:
                break
            record_limit = max(1, min(MAX_PIECE_EVENTS, limit) // self._events_per_record)
            polled = self._source.poll(record_limit, min(max(0.0, seconds_left), POLL_SECONDS))
            self._handle_poll_errors(polled)
            if generation != self._source.generation:
                # After a rebalance, drop the decoded records, because their partitions are read again.
                pieces.clear()
                break
            if polled.messages:
                decoded, self._undecoded = self._decode(polled.messages, count, limit - count)
                pieces += decoded
                count += sum(piece.event_count for piece in decoded)
                size += sum(piece.size for piece in decoded)
                if self._undecoded:
                    break
            elif seconds_left <= 0 or polled.error or polled.out_of_range:
                break
        return pieces

    def _decode(
        self, records: Sequence[Message], first_number: int, max_events: int
    ) -> tuple[list[Piece], Sequence[Message]]:
        pieces: list[Piece] = []
        now_ms, events, size = time.time_ns() // 1_000_000, 0, 0
        while records and (not pieces or (events < max_events and size < BATCH_BYTES)):
            try:
                piece, records = self._reader.decode_some(records, now_ms, first_number + events)
            except RegistryUnavailableError:
                records = self._pause_unknown_schemas(records)
                continue
            pieces.append(piece)
            events, size = events + piece.event_count, size + piece.size
            self._events_per_record = max(1, piece.event_count // len(piece.messages))
        return pieces, records

    def _pause_unknown_schemas(self, records: Sequence[Message]) -> list[Message]:
        first_unknown = self._reader.unknown_schema_offsets(records)
        log.warning("partitions %s wait for the schema registry", sorted(first_unknown))
        self._waiting_partitions |= first_unknown.keys()
        self._source.pause(first_unknown)
        return [m for m in records if m.partition() not in first_unknown or m.offset() < first_unknown[m.partition()]]

    def _waiting_for_schemas(self) -> frozenset[int]:
        if self._waiting_partitions and self._side_inputs.registry_answers:
            self._waiting_partitions.clear()
        return frozenset(self._waiting_partitions)

    def _can_store(self) -> bool:
        return (
            self._side_inputs.ready and not self.superseded_reason and self.kafka.can_read() and self.link.ensure_open()
        )

    def _handle_poll_errors(self, polled: PollResult) -> None:
        if polled.out_of_range:
            self._source.pause(polled.out_of_range)
        # Received records may have been prefetched, so they do not show that Kafka answers.
        if polled.error is not None:
            self.kafka.record_failure(polled.error)

    def _process(self, pieces: list[Piece]) -> None:
        self._store(pieces)
        self._throttle.sleep_after(sum(len(piece.messages) for piece in pieces))

    def _store(self, pieces: list[Piece]) -> None:
        started = time.perf_counter()
        batch = self._reader.join(pieces)
        while batch.next_offsets and self.link.committer is not None:
            try:
                committed = self.link.committer.commit(batch, self.assignment.positions)
            except Fenced as fenced:
                log.warning("%s; reading the positions again", fenced)
                metrics.FENCED.inc()
                self._source.pause(fenced.partitions)
                batch = batch.without(fenced.partitions)
            except Superseded as superseded:
                log.warning("%s; this process waits until a new process replaces it", superseded)
                self.superseded_reason = str(superseded)
                return
            except Exception as error:
                remaining = self._after_error(batch, error)
                if remaining is None:
                    return
                batch = remaining
            else:
                self._after_commit(batch, committed, time.perf_counter() - started)
                return

    def _after_error(self, batch: Batch, error: Exception) -> Batch | None:
        try:
            if is_refusal(error):
                return reject_unstorable(batch, error, self._is_storable)
            if isinstance(error, psycopg.Error | OSError):
                raise error
        except (psycopg.Error, OSError) as connection_error:
            self.link.drop(connection_error)
            return None
        raise error

    def _is_storable(self, batch: Batch) -> bool:
        assert self.link.committer is not None  # noqa: S101
        try:
            self.link.committer.dry_run(batch, self.assignment.positions)
        except Exception as error:
            if is_refusal(error):
                return False
            raise
        return True

    def _after_commit(self, batch: Batch, committed: CommitResult, seconds: float) -> None:
        self.link.record_commit()
        self.assignment.advance(batch, committed)
        self._on_commit(committed.changes)
        count_commit(self._config.name, batch, committed, seconds)

    def _collect_garbage(self) -> None:
        if time.monotonic() - self._collected_at >= COLLECT_SECONDS:
            self._collected_at = time.monotonic()
            gc.collect()
