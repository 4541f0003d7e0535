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
from tidemill_processor.formats.registry import RegistryAwayError
from tidemill_processor.letters import Message
from tidemill_processor.merge.culprits import without_culprits
from tidemill_processor.replay import Pace, ReplayOptions
from tidemill_processor.source.consumer import Polled, Source
from tidemill_processor.source.kafka_health import KafkaHealth
from tidemill_processor.transaction import Change, Committed, Fenced, Superseded, is_refusal

log = logging.getLogger(__name__)

BATCH_LIMIT = 50_000
# The maximum size of a batch in bytes, which limits the memory for a batch.
BATCH_BYTES = 32 * 1024 * 1024
# The number of records to consume and decode together, few enough for the CPU's cache.
PIECE_LIMIT = 4_000
# The interval between garbage collections.
COLLECT_SECONDS = 10.0
PAUSED_POLL_SECONDS = 0.1
# The maximum wait for records. A short wait lets the loop stop quickly.
POLL_SECONDS = 0.5


def count_commit(pipeline: str, batch: Batch, committed: Committed, seconds: float) -> None:
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
    for letter in batch.dead:
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
        self._events_a_record = 1
        self._rest: Sequence[Message] = ()
        self._held: set[int] = set()
        self._pace = Pace(replay.rate)
        # Anomaly rules over single events are slow, so use smaller batches.
        self._limit = BATCH_LIMIT // (1 + sum(rule.field is not None for rule in config.spec.anomalies))
        self._flush_seconds = parse_ms(config.spec.processor.flush_interval) / 1000
        self.kafka = KafkaHealth(guards.kafka_consumer, source.renew)
        self.link = DatabaseLink(config, database, guards.database, source.stop)
        self.assignment = Assignment(config, database, source, self.kafka, self.link, replay.start_from)
        self._collected_at = 0.0
        self._stopping = False
        self.superseded = ""
        self._turned_at = time.monotonic()

    @property
    def alive_at(self) -> float:
        """The time of the last progress (monotonic seconds)."""
        return max(self._turned_at, self._source.heard_at, self.link.heard_at)

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
                self._turn()
                self._turned_at = time.monotonic()
                self.link.turned()
                self._collect()
        finally:
            gc.enable()
            self.assignment.report(force=True)
            self._source.close()
            self.link.close()

    def _turn(self) -> None:
        self._side_inputs.begin_turn()
        if self._may_store():
            self.assignment.take_up(self._waiting_for_schemas())
        else:
            self._source.stop()
        pieces = self._gather(self._flush_seconds if self._source.ready else PAUSED_POLL_SECONDS)
        self.assignment.see_changes()
        ready = self._source.ready
        if pieces:
            self._process(pieces)
        while self._rest:
            self._process_rest(ready)
        if not self.superseded:
            self.assignment.hand_over()
        self.assignment.confirm_ends()
        self.assignment.report()

    def _process_rest(self, ready: frozenset[int]) -> None:
        if self._stopping or self.superseded or self._source.ready != ready:
            self._source.stop()
            self._rest = ()
            return
        pieces, self._rest = self._decode(self._rest, 0, self._pace.limit(self._limit))
        if pieces:
            self._process(pieces)
        self._turned_at = time.monotonic()
        self._side_inputs.begin_turn()

    def _gather(self, seconds: float) -> list[Piece]:
        pieces: list[Piece] = []
        count, size, generation, deadline = 0, 0, self._source.generation, time.monotonic() + seconds
        limit = self._pace.limit(self._limit)
        while count < limit and size < BATCH_BYTES and not self._stopping:
            left = deadline - time.monotonic()
            if left <= 0 and pieces:
                break
            records = max(1, min(PIECE_LIMIT, limit) // self._events_a_record)
            polled = self._source.poll(records, min(max(0.0, left), POLL_SECONDS))
            self._note(polled)
            if generation != self._source.generation:
                # After a rebalance, drop the decoded records, because their partitions are read again.
                pieces.clear()
                break
            if polled.messages:
                more, self._rest = self._decode(polled.messages, count, limit - count)
                pieces += more
                count += sum(piece.events for piece in more)
                size += sum(piece.size for piece in more)
                if self._rest:
                    break
            elif left <= 0 or polled.failed or polled.out_of_range:
                break
        return pieces

    def _decode(self, records: Sequence[Message], first: int, room: int) -> tuple[list[Piece], Sequence[Message]]:
        pieces: list[Piece] = []
        now_ms, events, size = time.time_ns() // 1_000_000, 0, 0
        while records and (not pieces or (events < room and size < BATCH_BYTES)):
            try:
                piece, records = self._reader.decode_some(records, now_ms, first + events)
            except RegistryAwayError:
                records = self._without_waiting(records)
                continue
            pieces.append(piece)
            events, size = events + piece.events, size + piece.size
            self._events_a_record = max(1, piece.events // len(piece.messages))
        return pieces, records

    def _without_waiting(self, records: Sequence[Message]) -> list[Message]:
        ends = self._reader.waiting(records)
        log.warning("partitions %s wait for the schema registry", sorted(ends))
        self._held |= ends.keys()
        self._source.stop(ends)
        return [m for m in records if m.partition() not in ends or m.offset() < ends[m.partition()]]

    def _waiting_for_schemas(self) -> frozenset[int]:
        if self._held and self._side_inputs.registry_answers:
            self._held.clear()
        return frozenset(self._held)

    def _may_store(self) -> bool:
        return self._side_inputs.ready and not self.superseded and self.kafka.allows() and self.link.is_open()

    def _note(self, polled: Polled) -> None:
        if polled.out_of_range:
            self._source.stop(polled.out_of_range)
        # Received records may have been prefetched, so they do not show that Kafka answers.
        if polled.failed is not None:
            self.kafka.failed(polled.failed)

    def _process(self, pieces: list[Piece]) -> None:
        self._store(pieces)
        self._pace.rest(sum(len(piece.messages) for piece in pieces))

    def _store(self, pieces: list[Piece]) -> None:
        started = time.perf_counter()
        batch = self._reader.join(pieces)
        while batch.next_offsets and self.link.committer is not None:
            try:
                committed = self.link.committer.commit(batch, self.assignment.positions)
            except Fenced as fenced:
                log.warning("%s; reading the positions again", fenced)
                metrics.FENCED.inc()
                self._source.stop(fenced.partitions)
                batch = batch.without(fenced.partitions)
            except Superseded as superseded:
                log.warning("%s; this process waits until a new process replaces it", superseded)
                self.superseded = str(superseded)
                return
            except Exception as error:
                batch_or_none = self._after_error(batch, error)
                if batch_or_none is None:
                    return
                batch = batch_or_none
            else:
                self._committed(batch, committed, time.perf_counter() - started)
                return

    def _after_error(self, batch: Batch, error: Exception) -> Batch | None:
        try:
            if is_refusal(error):
                return without_culprits(batch, error, self._storable)
            if isinstance(error, psycopg.Error | OSError):
                raise error
        except (psycopg.Error, OSError) as lost:
            self.link.lose(lost)
            return None
        raise error

    def _storable(self, batch: Batch) -> bool:
        assert self.link.committer is not None  # noqa: S101
        try:
            self.link.committer.attempt(batch, self.assignment.positions)
        except Exception as error:
            if is_refusal(error):
                return False
            raise
        return True

    def _committed(self, batch: Batch, committed: Committed, seconds: float) -> None:
        self.link.stored()
        self.assignment.advance(batch, committed)
        self._on_commit(committed.changes)
        count_commit(self._config.name, batch, committed, seconds)

    def _collect(self) -> None:
        if time.monotonic() - self._collected_at >= COLLECT_SECONDS:
            self._collected_at = time.monotonic()
            gc.collect()
