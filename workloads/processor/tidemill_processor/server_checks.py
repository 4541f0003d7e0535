"""Checks Kafka, Postgres and Redis in separate threads. So /health can report a hanging server."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
import redis
from confluent_kafka import KafkaException

from tidemill_chassis.resilience.config import BreakerOpen, Guards
from tidemill_processor.database import Database
from tidemill_processor.formats.registry import Registry, RegistryUnavailableError
from tidemill_processor.keeper.keeper import Keeper
from tidemill_processor.loop import Loop
from tidemill_processor.source.clusters import PlatformKafka
from tidemill_processor.source.consumer import Source
from tidemill_processor.source.stage_topic import StageBacklog

log = logging.getLogger(__name__)

EVERY_SECONDS = 1.0
PARTIAL_OUTAGE_SECONDS = 15.0
"""A broker that does not answer for this many seconds is reported, even if other brokers answer."""
_FAILED = (psycopg.Error, KafkaException, redis.RedisError, BreakerOpen, OSError, RegistryUnavailableError)


@dataclass(frozen=True)
class CheckedServers:
    """The servers and clients that are checked regularly.

    Attributes:
        platform_kafka: the client of the platform's Kafka, or None if the source topic is in this Kafka.
        stage_backlog: reads how many records wait for the Python stage, or None without a Python stage.
    """

    source: Source
    database: Database
    ping: Callable[[], object] | None = None
    registry: Registry | None = None
    platform_kafka: PlatformKafka | None = None
    stage_backlog: StageBacklog | None = None


class ServerChecks:
    """The regular checks of the servers that one processor uses."""

    def __init__(self, loop: Loop, keeper: Keeper | None, servers: CheckedServers, guards: Guards) -> None:
        self._loop, self._keeper, self._servers, self._guards = loop, keeper, servers, guards
        self._stopping = threading.Event()
        self._silent_partitions: tuple[float, frozenset[int]] | None = None
        self._redis_error = ""

    @property
    def kafka_partial_outage(self) -> str:
        """Which part of Kafka has not answered for `PARTIAL_OUTAGE_SECONDS`, or an empty string."""
        before = time.monotonic() - PARTIAL_OUTAGE_SECONDS
        if self._silent_partitions is not None and self._silent_partitions[0] <= before:
            return f"leaders of partitions {', '.join(map(str, sorted(self._silent_partitions[1])))} do not answer"
        if (lost_at := self._servers.source.lost_at) is not None and lost_at <= before:
            return "the coordinator of the consumer group does not answer"
        return ""

    @property
    def redis_error(self) -> str:
        """Why Redis does not answer, or an empty string."""
        if self._keeper is None:
            return ""
        return self._redis_error if self._keeper_waits else self._keeper.redis_error

    @property
    def _keeper_waits(self) -> bool:
        return bool(self._loop.link.unreachable or (self._keeper and self._keeper.database_error))

    def start(self) -> None:
        """Start the threads of the checks."""
        checks = [self._check_kafka, self._check_postgres, self._check_redis]
        checks += [self._check_registry] if self._servers.registry is not None else []
        checks += [self._servers.platform_kafka.probe] if self._servers.platform_kafka is not None else []
        for check in checks:
            threading.Thread(target=self._repeat, args=(check,), name=check.__name__.strip("_"), daemon=True).start()

    def stop(self) -> None:
        """Stop the threads of the checks."""
        self._stopping.set()

    def _repeat(self, check: Callable[[], None]) -> None:
        while not self._stopping.is_set():
            try:
                check()
            except _FAILED as error:
                log.debug("%s: %s", check.__name__, error)
            except Exception:
                log.exception("%s", check.__name__)
            self._stopping.wait(EVERY_SECONDS)

    def _check_kafka(self) -> None:
        loop, source, stage_backlog = self._loop, self._servers.source, self._servers.stage_backlog
        asked_at = time.monotonic()
        source.refresh_login()
        try:
            # The backlog includes records that the Python stage has not committed yet.
            unstaged = {} if stage_backlog is None else stage_backlog.lag_by_partition(source.assigned)
            ends = {number: end + unstaged.get(number, 0) for number, end in source.end_offsets().items()}
        except KafkaException:
            loop.assignment.backlog.expire()
            self._note_silent_partitions(source.missing_ends({}), asked_at)
            raise
        loop.kafka.record_answer(asked_at)
        loop.assignment.backlog.measure(ends, asked_at)
        self._note_silent_partitions(source.missing_ends(ends), asked_at)

    def _note_silent_partitions(self, partitions: frozenset[int], asked_at: float) -> None:
        self._silent_partitions = (
            (self._silent_partitions[0] if self._silent_partitions else asked_at, partitions) if partitions else None
        )

    def _check_postgres(self) -> None:
        guard, loop = self._guards.database, self._loop
        if guard.state == "closed" and not self._keeper_waits:
            return
        guard.probe(self._servers.database.probe, guard.probe_timeout_seconds)
        loop.link.allow_reconnect()

    def _check_redis(self) -> None:
        ping = self._servers.ping
        if ping is None or (self._guards.redis.state == "closed" and not self._keeper_waits):
            return
        try:
            self._guards.redis.probe(ping)
            self._redis_error = ""
        except _FAILED as error:
            self._redis_error = str(error) or type(error).__name__
            raise

    def _check_registry(self) -> None:
        registry = self._servers.registry
        if registry is not None and (registry.has_missing or registry.error):
            registry.fetch_missing()
