"""Runs the processor of one pipeline: `python -m tidemill_processor`."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any

from tidemill_chassis.health import Dependency, health_report
from tidemill_chassis.redis_clients import sync_client
from tidemill_chassis.resilience.config import ResilienceConfig
from tidemill_chassis.service import log_to_stderr, run_service
from tidemill_contract.duration import parse_ms
from tidemill_contract.runtime import WorkloadSettings
from tidemill_contract.tables.readers import LIVE
from tidemill_processor import metrics
from tidemill_processor.batches.side_inputs import SideInputs
from tidemill_processor.database import Database
from tidemill_processor.detect.scanning import Scanner
from tidemill_processor.formats.readers import registry_of
from tidemill_processor.keeper.duties import DutyRunner
from tidemill_processor.keeper.event_id_cleanup import EventIdCleaner
from tidemill_processor.keeper.health import keeper_health
from tidemill_processor.keeper.keeper import Keeper, KeeperWorkers
from tidemill_processor.keeper.lookup_failures import LookupFailureWriter
from tidemill_processor.keeper.quotas import QuotaReport
from tidemill_processor.lookups.lookups import lookups_of
from tidemill_processor.loop import Loop
from tidemill_processor.publish.live import LiveSender
from tidemill_processor.publish.producer import RecordSender
from tidemill_processor.publish.publisher import Publisher
from tidemill_processor.replay import ReplayOptions
from tidemill_processor.server_checks import CheckedServers, ServerChecks
from tidemill_processor.source.clusters import PlatformKafka
from tidemill_processor.source.consumer import Source
from tidemill_processor.source.stage_topic import StageBacklog, platform_kafka_settings
from tidemill_processor.time.closing import Closer

log = logging.getLogger("tidemill_processor")

KAFKA_SILENCE_SECONDS = 20.0
STUCK_SECONDS = 120.0


class Processor:
    """A pipeline's processor: the main loop, the keeper, and checks of Kafka, Postgres and Redis."""

    def __init__(self, settings: WorkloadSettings) -> None:
        config = settings.load_pipeline(settings.pipeline)
        self._resilience = ResilienceConfig.load(settings.resilience_file, os.environ)
        self._guards = self._resilience.guards()
        metrics.init_counters(config)
        self._config = config
        self._database = Database(settings, config, self._guards.database.timeout_seconds)
        self._source, self._platform_kafka = Source(settings, config), PlatformKafka(settings)
        with_redis = bool(settings.redis_url)
        self._redis = sync_client(settings, self._guards.redis.timeout_seconds) if with_redis else None
        self._live: LiveSender | None = None
        self._quota_report = QuotaReport(self._database, config)
        self._registry = registry_of(config.spec, settings)
        self._lookups = lookups_of(config, settings)
        self.loop = Loop(
            config,
            self._database,
            self._source,
            self._guards,
            self._add_live_changes,
            replay=ReplayOptions(settings.start_from, settings.rate),
            side_inputs=SideInputs(self._registry, self._lookups),
        )
        interval = min(1.0, parse_ms(config.spec.processor.flush_interval) / 1000)
        # Only live processors close and publish windows, so a replay needs no `Keeper`.
        replaying = self._database.reader != LIVE
        runner = DutyRunner(self._database.schema)
        self.keeper = None if replaying else Keeper(self._database.connect, self._duties, runner, interval)

        if self.keeper is not None:
            self.keeper.must_wait = lambda: self.loop.link.unreachable
        self._server_checks = ServerChecks(self.loop, self.keeper, self._checked(settings), self._guards)
        self._was_healthy = False

    def _checked(self, settings: WorkloadSettings) -> CheckedServers:
        staged = self._config.spec.transform.python is not None
        return CheckedServers(
            self._source,
            self._database,
            ping=None if self._redis is None else sync_client(settings, self._guards.redis.probe_timeout_seconds).ping,
            registry=self._registry,
            platform_kafka=self._platform_kafka if self._source.login.servers and self.keeper is not None else None,
            stage_backlog=StageBacklog(platform_kafka_settings(settings), self._config) if staged else None,
        )

    def _add_live_changes(self, changes: Any) -> None:
        if self._live is not None:
            self._live.add(changes)

    def _duties(self, connection: Any) -> KeeperWorkers:
        database, config, lookups = self._database, self._config, self._lookups
        stores = database.aggregations(connection)
        rules = {s.name: [r for r in config.spec.anomalies if r.aggregation == s.name] for s in stores}
        if self._redis is not None and self._live is None:
            self._live = LiveSender(database, stores, config, self._redis, self._call_redis)
        return KeeperWorkers(
            closer=Closer(database, stores, config),
            scanners=[Scanner(database, s, rules[s.name]) for s in stores if rules[s.name]],
            publisher=Publisher(database, stores, config, RecordSender(self._platform_kafka.create_producer)),
            live_sender=self._live,
            quota_report=self._quota_report,
            lookup_failure_writer=None if lookups is None else LookupFailureWriter(database.schema, lookups),
            event_id_cleaner=EventIdCleaner.of(connection, database, config),
        )

    def _call_redis(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        return self._guards.redis.call(lambda: call(*args, **kwargs), retry=False)

    def health(self) -> tuple[int, dict[str, Any]]:
        """Return the status code and body of /health."""
        loop, keeper = self.loop, self.keeper
        clock = keeper.clock if keeper is not None else None
        keeper_part = keeper_health(keeper)
        return health_report(
            "processor",
            [*self._servers(), *self._side_servers()],
            {
                "pipeline": f"{self._config.namespace}/{self._config.name}",
                "partitions": sorted(loop.assignment.partitions),
                "lag": loop.assignment.backlog.events,
                "watermark": clock.watermark if clock else None,
                "superseded": loop.superseded_reason,
                "quotas": self._quota_report.texts or "ok",
                **({} if self._lookups is None else {"lookups": self._lookups.figures()}),
                **keeper_part.fields,
            },
            degraded=keeper_part.degraded,
        )

    def _servers(self) -> list[Dependency]:
        loop, keeper, guards = self.loop, self.keeper, self._guards
        login = self._source.login
        address = f"{login.servers}: " if login.servers else ""
        kafka_ok = not loop.kafka.error and time.monotonic() - loop.kafka.answered_at < KAFKA_SILENCE_SECONDS
        reason = login.error or loop.kafka.error or f"no answer for {KAFKA_SILENCE_SECONDS:.0f} s"
        kafka_error = "" if kafka_ok else f"{address}{reason}"
        partial_outage = (
            f"{address}{outage}" if kafka_ok and (outage := self._server_checks.kafka_partial_outage) else ""
        )
        database_error = (
            loop.link.error or (keeper.database_error if keeper is not None else "") or loop.link.slow_reason
        )
        return [
            # If only some brokers are down, the processor still reads from the other brokers.
            Dependency(
                "source_kafka" if address else "kafka",
                kafka_ok and not partial_outage,
                not partial_outage,
                kafka_error or partial_outage,
                guards.kafka_consumer.state,
            ),
            Dependency("postgres", not database_error, True, database_error, guards.database.state),
        ]

    def _side_servers(self) -> list[Dependency]:
        dependencies = []
        if self._source.login.servers and self.keeper is not None:
            # If only the platform's Kafka is down, the processor still counts events from the source's Kafka. The
            # processor publishes the results later.
            dependencies.append(Dependency("kafka", not self._platform_kafka.error, False, self._platform_kafka.error))
        if self._redis is not None and self.keeper is not None:
            redis_error, state = self._server_checks.redis_error, self._guards.redis.state
            dependencies.append(Dependency("redis", not redis_error, False, redis_error, state))
        if self._registry is not None:
            # Without the schema registry, the processor still counts records whose schemas were read before.
            dependencies.append(Dependency("registry", not self._registry.error, False, self._registry.error))
        if self._lookups is not None:
            dependencies += self._lookups.dependencies()
        return dependencies

    def ready(self) -> bool:
        """Return True if the configuration is current and the processor was healthy at least once."""
        self._was_healthy = self._was_healthy or self.health()[0] == 200
        return self._was_healthy and not self.loop.superseded_reason

    def live(self) -> bool:
        """Return whether the loop and the keeper have made progress in the last `STUCK_SECONDS`."""
        alive = [self.loop.alive_at, *([self.keeper.alive_at] if self.keeper is not None else [])]
        return time.monotonic() - min(alive) < STUCK_SECONDS

    def stop(self) -> None:
        """Let `run` return after the current round."""
        self.loop.stop()

    def run(self) -> None:
        """Process events until `stop` is called."""
        if self.keeper is not None:
            self.keeper.start()
        self._server_checks.start()
        if self._lookups is not None:
            self._lookups.start()
        try:
            self.loop.run()
        finally:
            self._server_checks.stop()
            if self._lookups is not None:
                self._lookups.stop()
            if self.keeper is not None:
                self.keeper.stop()


def main() -> int:
    """Run the processor and return the exit code."""
    settings = WorkloadSettings.from_env()
    log_to_stderr(settings)
    processor = Processor(settings)
    run_service(processor, settings, log=log, description=f"processing {settings.pipeline}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
