"""The loop: consume a micro-batch, store it, move on; or keep polling, paused, until that is possible again.

Whatever goes wrong in storing a batch has one answer: forget it, read the positions again, read the events again. The
positions in Postgres moved only if the rows did.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg
from confluent_kafka import KafkaError, KafkaException

from tidemill_chassis.failures import database_failed, kafka_fatal
from tidemill_chassis.resilience import Guards
from tidemill_contract.duration import parse_ms
from tidemill_contract.events.decoder import Reason
from tidemill_contract.runtime import PipelineConfig
from tidemill_processor import metrics
from tidemill_processor.batch import INDEX, Batch, BatchReader, Piece
from tidemill_processor.connection import WriterConnection
from tidemill_processor.database import LIVE, AggregationStore, Database
from tidemill_processor.replay import ASK_SECONDS, Handover, Pace
from tidemill_processor.source.backlog import Backlog
from tidemill_processor.source.consumer import Polled, Source
from tidemill_processor.source.positions import Positions
from tidemill_processor.transaction import Change, Committed, Committer, Fenced, Position, Superseded, is_refusal

log = logging.getLogger(__name__)

BATCH_LIMIT = 50_000
# Events may be of a megabyte each, and a batch is held in memory.
BATCH_BYTES = 32 * 1024 * 1024
# Consumed and decoded at once: few enough that the events' objects stay in the processor's cache (see BatchReader).
PIECE_LIMIT = 4_000
# Records and events make no cycles, but their number would set off a collection every few hundred of them.
COLLECT_SECONDS = 10.0
PAUSED_POLL_SECONDS = 0.1
# However long a flushInterval is: what one call brings is bounded by the time it takes, and a stop is noticed.
POLL_SECONDS = 0.5
TOPIC_CHECK_SECONDS = 10.0
REPORT_SECONDS = 2.0
MAX_BACKOFF_SECONDS = 8.0


class Loop:
    """Processes one pipeline's events until stopped.

    Args:
        config: the pipeline.
        database: its schema.
        source: its topic.
        guards: circuit breakers.
        on_commit: told of every commit's changes.
        start_from: where a replay begins; empty: as the spec says.
        rate: events a second at most; 0: as many as there are.
    """

    def __init__(
        self,
        config: PipelineConfig,
        database: Database,
        source: Source,
        guards: Guards,
        on_commit: Callable[[tuple[Change, ...]], None],
        *,
        start_from: str = "",
        rate: int = 0,
    ) -> None:
        self._config = config
        self._database = database
        self._source = source
        self._guards = guards
        self._on_commit = on_commit
        self._reader = BatchReader(config.spec, offsets=database.reader != LIVE)
        self._lookup = Positions(database, config, source, start_from)
        self._pace = Pace(rate)
        # To judge an event takes longer than all else that is done with it: Kafka must not wait for many rules.
        self._limit = BATCH_LIMIT // (1 + sum(rule.field is not None for rule in config.spec.anomalies))
        self._flush_seconds = parse_ms(config.spec.processor.flush_interval) / 1000
        self._connection: WriterConnection | None = None
        self._committer: Committer | None = None
        self._positions: dict[int, Position] = {}
        self.backlog = Backlog(source, self._positions)
        self._resume_at: dict[int, float] = {}
        self._connect_at = 0.0
        self._backoff = 0.5
        self._topic_id = ""
        self._topic_checked_at = -TOPIC_CHECK_SECONDS
        self._reported_at = 0.0
        self._collected_at = 0.0
        self._stopping = False
        self.superseded = ""
        self.database_error = "not connected yet"
        self.kafka_error = "not connected yet"
        self.kafka_ok_at = 0.0
        self._kafka_failed_at = 0.0
        self.database_silent = False
        self._turned_at = time.monotonic()
        self.assigned: frozenset[int] = frozenset()

    @property
    def alive_at(self) -> float:
        """When the loop last came a step further. To be kept waiting by a server, and give up, is a step, too."""
        connection = self._connection
        return max(self._turned_at, self._source.heard_at, connection.heard_at if connection is not None else 0.0)

    @property
    def database_slow(self) -> str:
        """What is to be told of a Postgres that answers, but slowly; empty: nothing."""
        connection = self._connection
        return connection.slow if connection is not None else ""

    def stop(self) -> None:
        """End after the present turn."""
        self._stopping = True

    def run(self) -> None:
        """Turn until stopped, then leave the group. Meanwhile garbage is collected between turns only."""
        self._source.subscribe()
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            while not self._stopping:
                self._turn()
                self._turned_at = time.monotonic()
                if self._connection is not None:
                    self._connection.done()
                self._collect()
        finally:
            gc.enable()
            self._report(force=True)
            self._source.close()
            if self._connection is not None:
                self._connection.close()

    def _turn(self) -> None:
        if self._may_store():
            self._take_up()
        else:
            self._source.stop(self._source.ready)
        pieces = self._gather(self._flush_seconds if self._source.ready else PAUSED_POLL_SECONDS)
        self._see_assignment()
        if pieces:
            self._process(pieces)
            self._pace.rest(sum(len(piece.messages) for piece in pieces))
        self._hand_over()
        self._check_ends()
        self._report()

    def _gather(self, seconds: float) -> list[Piece]:
        """Consume and decode for so long, or until a batch is full."""
        pieces: list[Piece] = []
        count, size, generation, deadline = 0, 0, self._source.generation, time.monotonic() + seconds
        limit = self._pace.limit(self._limit)
        while count < limit and size < BATCH_BYTES and not self._stopping:
            left = deadline - time.monotonic()
            if left <= 0 and pieces:
                break
            polled = self._source.poll(min(PIECE_LIMIT, limit), min(max(0.0, left), POLL_SECONDS))
            self._note(polled)
            if generation != self._source.generation:
                # Partitions were assigned anew: all are read from their stored positions again, these events too.
                pieces.clear()
                break
            if polled.messages:
                pieces.append(self._reader.decode(polled.messages, time.time_ns() // 1_000_000, count))
                count += len(polled.messages)
                size += pieces[-1].size
            elif left <= 0 or polled.failed or polled.out_of_range:
                break
        return pieces

    def _may_store(self) -> bool:
        if self.superseded or not self._guards.kafka_consumer.allow():
            return False
        if self._connection is not None and not self._connection.closed:
            return True
        now = time.monotonic()
        # A silent server is waited for elsewhere: here polling goes on.
        if self.database_silent or now < self._connect_at or not self._guards.database.allow():
            return False
        try:
            self._connect()
        except (psycopg.Error, LookupError, OSError, ValueError) as error:
            self._lose_database(error)
            return False
        return True

    def _connect(self) -> None:
        connection = self._database.connect()
        stores: list[AggregationStore] = self._database.aggregations(connection)
        self._committer = Committer(connection, self._database, stores, self._config)
        self._connection = connection
        self.database_error, self._backoff = "", 0.5
        self._guards.database.success()
        self._source.stop(self._source.ready)

    def _lose_database(self, error: Exception) -> None:
        """Forget the connection and what was read ahead; try again later while the loop polls on."""
        text = str(error).strip() or type(error).__name__
        log.warning("postgres: %s; again in %.1f s", text, self._backoff)
        metrics.ROLLED_BACK.labels(reason="postgres").inc()
        self.database_error = text
        self.database_silent = isinstance(error, psycopg.OperationalError | OSError) and database_failed(error)
        self._guards.database.failure(error)
        if self._connection is not None:
            self._connection.close()
        self._connection = self._committer = None
        self._connect_at = time.monotonic() + self._backoff
        self._backoff = min(self._backoff * 2, MAX_BACKOFF_SECONDS)
        self._source.stop(self._source.ready)

    def database_answers(self) -> None:
        """Told by who looked: the loop may connect again."""
        self.database_silent, self._connect_at = False, 0.0

    def _take_up(self) -> None:
        """Seek and resume partitions that are ours but not read yet; look whether the topic is still the same one."""
        connection, source = self._connection, self._source
        assert connection is not None  # noqa: S101 - _may_store saw to it
        waiting = source.assigned - source.ready
        stale = time.monotonic() - self._topic_checked_at >= TOPIC_CHECK_SECONDS
        if not (waiting or stale):
            return
        try:
            if stale:
                self._check_topic()
                waiting = source.assigned - source.ready
            if waiting and self._handover is not None:
                waiting -= self._handover.handed(connection) | self._ahead()
            if waiting and self._topic_id:
                positions = self._lookup.take_up(connection, waiting, self._topic_id)
                self._positions.update(positions)
                source.start({p: position.next_offset for p, position in positions.items()})
        except KafkaException as error:
            self._kafka_failed(error.args[0])
        except psycopg.Error as error:
            self._lose_database(error)

    @property
    def _handover(self) -> Handover | None:
        return self._committer.handover if self._committer is not None else None

    def _hand_over(self) -> None:
        """Of a replay: leave partitions to live processors where nothing is left to read."""
        handover, connection, ready = self._handover, self._connection, self._source.ready
        if handover is None or connection is None or self.superseded:
            return
        try:
            at = {p: position.next_offset for p, position in self._positions.items() if p in ready}
            met = handover.meet(connection, at, {p: self._source.end_read(p) for p in at})
        except psycopg.Error as error:
            self._lose_database(error)
            return
        self._handed(met)

    def _ahead(self) -> frozenset[int]:
        """Partitions of a replay that wait for live processors to come to where it stands."""
        now = time.monotonic()
        self._resume_at = {p: at for p, at in self._resume_at.items() if at > now}
        return frozenset(self._resume_at)

    def _handed(self, partitions: frozenset[int]) -> None:
        if partitions:
            log.info("partitions %s are handed over to live processors", sorted(partitions))
            self._source.stop(partitions)

    def _see_assignment(self) -> None:
        """Note a rebalance: forget the figures of partitions that are gone."""
        assigned = self._source.assigned
        if assigned == self.assigned:
            return
        metrics.REBALANCES.inc()
        # Nothing of it is being read; where it was committed to meanwhile is not known before it is taken up.
        self._positions.clear()
        self.assigned = assigned

    def _check_topic(self) -> None:
        self._topic_checked_at = time.monotonic()
        topic_id = self._source.topic_id()
        self.kafka_works(self._topic_checked_at)
        if topic_id != self._topic_id:
            if self._topic_id:
                self._source.stop(self._source.ready)
            self._topic_id = topic_id

    def _note(self, polled: Polled) -> None:
        if polled.out_of_range:
            self._source.stop(polled.out_of_range)
        # Records say nothing of Kafka: they may have been fetched before it went away. Ends are asked for every second.
        if polled.failed is not None:
            self._kafka_failed(polled.failed)

    def _kafka_failed(self, error: Any) -> None:
        text = error.str() if isinstance(error, KafkaError) else str(error)
        if self.kafka_error != text:
            log.warning("kafka: %s", text)
        self.kafka_error, self._kafka_failed_at = text, time.monotonic()
        self._guards.kafka_consumer.failure()
        if kafka_fatal(error):
            # A member that was away may be fenced by what it asked for itself, just before, under its former id.
            self._source.renew()

    def kafka_works(self, asked_at: float) -> None:
        """Kafka has answered what it was asked then, which says nothing against a later failure. From any thread."""
        if asked_at >= self._kafka_failed_at:
            self.kafka_error, self.kafka_ok_at = "", asked_at
            guard = self._guards.kafka_consumer
            if guard.state == "closed":
                guard.success()
            else:
                guard.recovered(asked_at)

    def _process(self, pieces: list[Piece]) -> None:
        started = time.perf_counter()
        batch = self._reader.join(pieces)
        while batch.next_offsets and self._committer is not None:
            try:
                committed = self._committer.commit(batch, self._positions)
            except Fenced as fenced:
                log.warning("%s; reading their positions again", fenced)
                metrics.FENCED.inc()
                self._source.stop(fenced.partitions)
                batch = batch.without(fenced.partitions)
            except Superseded as superseded:
                log.warning("%s; waiting to be replaced", superseded)
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
        """What to try next after a failed commit: the batch less the events that Postgres refuses, or nothing now."""
        try:
            if is_refusal(error):
                return self._without_culprits(batch, error)
            if isinstance(error, psycopg.Error | OSError):
                raise error
        except (psycopg.Error, OSError) as lost:
            self._lose_database(lost)
            return None
        raise error

    def _without_culprits(self, batch: Batch, error: Exception) -> Batch:
        """Find by halves the events without which the rest can be stored, and refuse them."""
        kept = batch.frame.clear()
        culprits: list[int] = []
        pieces = [batch.frame]
        while pieces:
            piece = pieces.pop()
            together = kept.vstack(piece)
            if self._storable(batch, together):
                kept = together
            elif piece.height == 1:
                culprits += piece[INDEX].to_list()
            else:
                half = piece.height // 2
                pieces += [piece[half:], piece[:half]]
        metrics.ROLLED_BACK.labels(reason="refused").inc()
        log.warning("postgres refuses %d event(s): %s", len(culprits), str(error).strip())
        if not culprits:
            raise error
        return batch.refuse(culprits, Reason.REFUSED_BY_DATABASE, str(error).strip())

    def _storable(self, batch: Batch, frame: Any) -> bool:
        assert self._committer is not None  # noqa: S101
        try:
            self._committer.attempt(replace(batch, frame=frame), self._positions)
        except Exception as error:
            if is_refusal(error):
                return False
            raise
        return True

    def _committed(self, batch: Batch, committed: Committed, seconds: float) -> None:
        self._guards.database.success()
        self._positions.update(committed.positions)
        self._handed(committed.handed)
        # What a replay read beyond live processors comes again, unless it is left to them. Not at once: they may be far
        # behind where it begins, and to read the same again and again would keep them from coming nearer.
        ahead = [p for p, at in committed.positions.items() if at.next_offset < batch.next_offsets[p]]
        self._source.stop(ahead)
        self._resume_at |= dict.fromkeys(ahead, time.monotonic() + ASK_SECONDS)
        self._on_commit(committed.changes)
        metrics.EVENTS_CONSUMED.inc(len(batch.messages))
        metrics.BATCH_EVENTS.observe(len(batch.messages))
        metrics.BATCH_SECONDS.observe(seconds)
        metrics.FRESHNESS_SECONDS.observe(max(0.0, time.time() - min(batch.arrived.values()) / 1000))
        metrics.count_anomalies(self._config.name, committed.anomalies)
        if batch.filtered:
            metrics.EVENTS_FILTERED.inc(sum(batch.filtered.values()))
        for letter in batch.dead:
            metrics.DEAD_LETTERS.labels(reason=letter.reason).inc()
        for (aggregation, policy), number in committed.late.items():
            metrics.EVENTS_LATE.labels(aggregation=aggregation, policy=policy).inc(number)

    def _check_ends(self) -> None:
        answer = self.backlog.news()
        if answer is None or self._connection is None:
            return
        ends, asked_at = answer
        at = {p: self._positions[p] for p in self._source.ready if p in self._positions and p in ends}
        caught_up = {p: position for p, position in at.items() if self.backlog.reached(p, position) >= ends[p]}
        try:
            self._lookup.confirm_ends(self._connection, caught_up, time.monotonic() - asked_at)
        except psycopg.Error as error:
            self._lose_database(error)

    def _collect(self) -> None:
        if time.monotonic() - self._collected_at >= COLLECT_SECONDS:
            self._collected_at = time.monotonic()
            gc.collect()

    def _report(self, *, force: bool = False) -> None:
        if self._database.reader != LIVE:
            return  # nobody watches its lag in Kafka, and a group without offsets goes once it is without members
        if force or time.monotonic() - self._reported_at >= REPORT_SECONDS:
            self._reported_at = time.monotonic()
            ready = self._source.ready
            self._source.report_offsets({p: at.next_offset for p, at in self._positions.items() if p in ready})
