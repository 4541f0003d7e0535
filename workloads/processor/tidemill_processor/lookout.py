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
from tidemill_processor.formats.registry import Registry, RegistryAwayError
from tidemill_processor.keeper.keeper import Keeper
from tidemill_processor.loop import Loop
from tidemill_processor.source.clusters import Outputs
from tidemill_processor.source.consumer import Source
from tidemill_processor.source.staged import Upstream

log = logging.getLogger(__name__)

EVERY_SECONDS = 1.0
PARTLY_SECONDS = 15.0
"""A broker that does not answer for this many seconds is reported, even if other brokers answer."""
_FAILED = (psycopg.Error, KafkaException, redis.RedisError, BreakerOpen, OSError, RegistryAwayError)


@dataclass(frozen=True)
class Checked:
    """The servers and clients that are checked regularly.

    Attributes:
        outputs: the client of the platform's Kafka, or None if the source topic is in this Kafka.
        upstream: reads how many records wait for the Python stage, or None without a Python stage.
    """

    source: Source
    database: Database
    ping: Callable[[], object] | None = None
    registry: Registry | None = None
    outputs: Outputs | None = None
    upstream: Upstream | None = None


class Lookout:
    """The regular checks of the servers that one processor uses."""

    def __init__(self, loop: Loop, keeper: Keeper | None, servers: Checked, guards: Guards) -> None:
        self._loop, self._keeper, self._servers, self._guards = loop, keeper, servers, guards
        self._stopping = threading.Event()
        self._untold: tuple[float, frozenset[int]] | None = None
        self._redis_error = ""

    @property
    def kafka_partly(self) -> str:
        """Which part of Kafka has not answered for PARTLY_SECONDS, or an empty string."""
        before = time.monotonic() - PARTLY_SECONDS
        if self._untold is not None and self._untold[0] <= before:
            return f"leaders of partitions {', '.join(map(str, sorted(self._untold[1])))} do not answer"
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
        return bool(self._loop.link.silent or (self._keeper and self._keeper.database_error))

    def start(self) -> None:
        """Start the threads of the checks."""
        looks = [self._look_at_kafka, self._look_at_postgres, self._look_at_redis]
        looks += [self._look_at_registry] if self._servers.registry is not None else []
        looks += [self._servers.outputs.look] if self._servers.outputs is not None else []
        for look in looks:
            threading.Thread(target=self._repeat, args=(look,), name=look.__name__.strip("_"), daemon=True).start()

    def stop(self) -> None:
        """Stop the threads of the checks."""
        self._stopping.set()

    def _repeat(self, look: Callable[[], None]) -> None:
        while not self._stopping.is_set():
            try:
                look()
            except _FAILED as error:
                log.debug("%s: %s", look.__name__, error)
            except Exception:
                log.exception("%s", look.__name__)
            self._stopping.wait(EVERY_SECONDS)

    def _look_at_kafka(self) -> None:
        loop, source, upstream = self._loop, self._servers.source, self._servers.upstream
        asked_at = time.monotonic()
        source.follow_login()
        try:
            # The backlog includes records that the Python stage has not committed yet.
            before = {} if upstream is None else upstream.unstaged(source.assigned)
            ends = {number: end + before.get(number, 0) for number, end in source.ends().items()}
        except KafkaException:
            loop.assignment.backlog.expire()
            self._note_untold(source.untold({}), asked_at)
            raise
        loop.kafka.answered(asked_at)
        loop.assignment.backlog.measure(ends, asked_at)
        self._note_untold(source.untold(ends), asked_at)

    def _note_untold(self, partitions: frozenset[int], asked_at: float) -> None:
        self._untold = (self._untold[0] if self._untold else asked_at, partitions) if partitions else None

    def _look_at_postgres(self) -> None:
        guard, loop = self._guards.database, self._loop
        if guard.state == "closed" and not self._keeper_waits:
            return
        guard.look(self._servers.database.look, guard.look_seconds)
        loop.link.answers()

    def _look_at_redis(self) -> None:
        ping = self._servers.ping
        if ping is None or (self._guards.redis.state == "closed" and not self._keeper_waits):
            return
        try:
            self._guards.redis.look(ping)
            self._redis_error = ""
        except _FAILED as error:
            self._redis_error = str(error) or type(error).__name__
            raise

    def _look_at_registry(self) -> None:
        registry = self._servers.registry
        if registry is not None and (registry.missing or registry.error):
            registry.look()
