"""Runs the processor of one pipeline: `python -m tidemill_processor`."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any

from tidemill_chassis.health import Dependency, report
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
from tidemill_processor.keeper.duties import Trials
from tidemill_processor.keeper.forgetting import Forgetter
from tidemill_processor.keeper.health import standing
from tidemill_processor.keeper.keeper import Duties, Keeper
from tidemill_processor.keeper.lookup_notes import LookupNotes
from tidemill_processor.keeper.quotas import Report
from tidemill_processor.lookout import Checked, Lookout
from tidemill_processor.lookups.lookups import lookups_of
from tidemill_processor.loop import Loop
from tidemill_processor.publish.live import Live
from tidemill_processor.publish.producer import Outlet
from tidemill_processor.publish.publisher import Publisher
from tidemill_processor.replay import ReplayOptions
from tidemill_processor.source.clusters import Outputs
from tidemill_processor.source.consumer import Source
from tidemill_processor.source.staged import Upstream, connection_of
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
        metrics.begin_at_zero(config)
        self._config = config
        self._database = Database(settings, config, self._guards.database.timeout_seconds)
        self._source, self._outputs = Source(settings, config), Outputs(settings)
        with_redis = bool(settings.redis_url)
        self._redis = sync_client(settings, self._guards.redis.timeout_seconds) if with_redis else None
        self._live: Live | None = None
        self._report = Report(self._database, config)
        self._registry = registry_of(config.spec, settings)
        self._lookups = lookups_of(config, settings)
        self.loop = Loop(
            config,
            self._database,
            self._source,
            self._guards,
            self._note,
            replay=ReplayOptions(settings.start_from, settings.rate),
            side_inputs=SideInputs(self._registry, self._lookups),
        )
        interval = min(1.0, parse_ms(config.spec.processor.flush_interval) / 1000)
        # Only live processors close and publish windows, so a replay needs no `Keeper`.
        replaying = self._database.reader != LIVE
        trials = Trials(self._database.schema)
        self.keeper = None if replaying else Keeper(self._database.connect, self._duties, trials, interval)

        if self.keeper is not None:
            self.keeper.held = lambda: self.loop.link.silent
        self._lookout = Lookout(self.loop, self.keeper, self._checked(settings), self._guards)
        self._was_well = False

    def _checked(self, settings: WorkloadSettings) -> Checked:
        staged = self._config.spec.transform.python is not None
        return Checked(
            self._source,
            self._database,
            ping=None if self._redis is None else sync_client(settings, self._guards.redis.look_seconds).ping,
            registry=self._registry,
            outputs=self._outputs if self._source.login.servers and self.keeper is not None else None,
            upstream=Upstream(connection_of(settings), self._config) if staged else None,
        )

    def _note(self, changes: Any) -> None:
        if self._live is not None:
            self._live.note(changes)

    def _duties(self, connection: Any) -> Duties:
        database, config = self._database, self._config
        stores = database.aggregations(connection)
        rules = {s.name: [r for r in config.spec.anomalies if r.aggregation == s.name] for s in stores}
        if self._redis is not None and self._live is None:
            self._live = Live(database, stores, config, self._redis, self._call_redis)
        return Duties(
            closer=Closer(database, stores, config),
            scanners=[Scanner(database, s, rules[s.name]) for s in stores if rules[s.name]],
            publisher=Publisher(database, stores, config, Outlet(self._outputs.producer)),
            live=self._live,
            report=self._report,
            lookup_notes=None if self._lookups is None else LookupNotes(database.schema, self._lookups),
            forgetter=Forgetter.of(connection, database, config),
        )

    def _call_redis(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        return self._guards.redis.call(lambda: call(*args, **kwargs), retry=False)

    def health(self) -> tuple[int, dict[str, Any]]:
        """Return the status code and body of /health."""
        loop, keeper = self.loop, self.keeper
        clock = keeper.clock if keeper is not None else None
        kept = standing(keeper)
        return report(
            "processor",
            [*self._servers(), *self._side_servers()],
            {
                "pipeline": f"{self._config.namespace}/{self._config.name}",
                "partitions": sorted(loop.assignment.partitions),
                "lag": loop.assignment.backlog.events,
                "watermark": clock.watermark if clock else None,
                "superseded": loop.superseded,
                "quotas": self._report.texts or "ok",
                **({} if self._lookups is None else {"lookups": self._lookups.figures()}),
                **kept.fields,
            },
            degraded=kept.degraded,
        )

    def _servers(self) -> list[Dependency]:
        loop, keeper, guards = self.loop, self.keeper, self._guards
        login = self._source.login
        at = f"{login.servers}: " if login.servers else ""
        kafka_ok = not loop.kafka.error and time.monotonic() - loop.kafka.answered_at < KAFKA_SILENCE_SECONDS
        away = login.error or loop.kafka.error or f"no answer for {KAFKA_SILENCE_SECONDS:.0f} s"
        silent = "" if kafka_ok else f"{at}{away}"
        partly = f"{at}{outage}" if kafka_ok and (outage := self._lookout.kafka_partly) else ""
        silent_database = loop.link.error or (keeper.database_error if keeper is not None else "") or loop.link.slow
        return [
            # If only some brokers are down, the processor still reads from the other brokers.
            Dependency(
                "source_kafka" if at else "kafka",
                kafka_ok and not partly,
                not partly,
                silent or partly,
                guards.kafka_consumer.state,
            ),
            Dependency("postgres", not silent_database, True, silent_database, guards.database.state),
        ]

    def _side_servers(self) -> list[Dependency]:
        dependencies = []
        if self._source.login.servers and self.keeper is not None:
            # If only the platform's Kafka is down, the processor still counts events from the source's Kafka. The
            # processor publishes the results later.
            dependencies.append(Dependency("kafka", not self._outputs.error, False, self._outputs.error))
        if self._redis is not None and self.keeper is not None:
            silent, state = self._lookout.redis_error, self._guards.redis.state
            dependencies.append(Dependency("redis", not silent, False, silent, state))
        if self._registry is not None:
            # Without the schema registry, the processor still counts records whose schemas were read before.
            dependencies.append(Dependency("registry", not self._registry.error, False, self._registry.error))
        if self._lookups is not None:
            dependencies += self._lookups.dependencies()
        return dependencies

    def ready(self) -> bool:
        """Return True if the configuration is current and the processor was healthy at least once."""
        self._was_well = self._was_well or self.health()[0] == 200
        return self._was_well and not self.loop.superseded

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
        self._lookout.start()
        if self._lookups is not None:
            self._lookups.start()
        try:
            self.loop.run()
        finally:
            self._lookout.stop()
            if self._lookups is not None:
                self._lookups.stop()
            if self.keeper is not None:
                self.keeper.stop()


def main() -> int:
    """Run the processor and return the exit code."""
    settings = WorkloadSettings.from_env()
    log_to_stderr(settings)
    processor = Processor(settings)
    run_service(processor, settings, log=log, doing=f"processing {settings.pipeline}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
