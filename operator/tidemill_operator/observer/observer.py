"""Measure every few seconds how far pipelines are behind, independently of their processors.

While Postgres does not answer, the observer uses the last known positions. While Kafka does not answer, the figures are
unknown.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field, replace

from tidemill_operator.actuators.kafka.log import KafkaLog, Place
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.observer import metrics as pipeline_measures
from tidemill_operator.observer.backlog import (
    Compared,
    NotThere,
    Partitions,
    Position,
    Standing,
    against,
    freshness_seconds,
    oldest,
    read_standings,
)
from tidemill_operator.observer.figures import FRESH_SECONDS, Figures, Observation
from tidemill_operator.observer.progress import Look, Progress
from tidemill_operator.observer.stages import StageLook, Stages
from tidemill_operator.plan.postgres.lookups import unread

log = logging.getLogger(__name__)
INTERVAL_SECONDS = 5.0
# Short timeouts keep each round of measurements short, so that the figures stay current.
_POSTGRES_SECONDS, KAFKA_SECONDS = 3.0, 4.0
_PAUSE_SECONDS = 0.5

Show = Callable[[Key, Observation], None]
Tell = Callable[[Key, str, str, Look], None]
Arrivals = dict[int, tuple[int, float]]


@dataclass
class _Pipeline:
    """The state of an observed pipeline.

    Attributes:
        arrivals: by partition, the offset of the oldest uncounted record, and the epoch second of its arrival.
        noticed: like `arrivals`, but with the epoch second at which the observer first saw the record.
        voids: partitions whose remaining records are only transaction markers.
    """

    schema: str
    topic: str
    figures_at: float
    standing: Standing | None = None
    source: str = ""
    stage: StageLook | None = None
    fault: str = "nothing was read yet"
    look: Look = field(default_factory=dict)
    arrivals: Arrivals = field(default_factory=dict)
    noticed: Arrivals = field(default_factory=dict)
    voids: dict[int, tuple[int, int]] = field(default_factory=dict)
    figures: Figures | None = None


class Observer:
    """An observer that measures pipelines until it is stopped.

    Any thread may call `watch` and `forget`. In each round, the observer calls `progress` and then `show` for each
    pipeline.
    """

    def __init__(
        self,
        kafka: KafkaLog,
        postgres: PostgresAddress,
        show: Show,
        *,
        progress: Tell = lambda *_: None,
        interval_seconds: float = INTERVAL_SECONDS,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kafka, self._show, self._progress, self._interval = kafka, show, progress, interval_seconds
        self._now, self._clock = now, clock
        self._standings = _Patient(lambda schemas: read_standings(postgres, schemas))
        self._stages = Stages(kafka, now=now)
        self._known: dict[Key, _Pipeline] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tidemill-observer", daemon=True)

    def start(self) -> None:
        """Start measuring."""
        self._thread.start()

    def leave(self) -> None:
        """Tell the observer to stop after the current round, and return immediately."""
        self._stopping.set()

    def stop(self) -> None:
        """Stop measuring, and wait for the end of the current round."""
        self.leave()
        if self._thread.is_alive():
            self._thread.join(_POSTGRES_SECONDS + 2 * KAFKA_SECONDS)

    def watch(self, key: Key, schema: str, topic: str, source: str = "") -> None:
        """Start measuring a pipeline."""
        with self._lock:
            pipeline = self._known.get(key)
            if pipeline is None or (pipeline.schema, pipeline.topic, pipeline.source) != (schema, topic, source):
                self._known[key] = _Pipeline(schema, topic, self._clock(), source=source)

    def forget(self, key: Key) -> None:
        """Stop measuring a pipeline, and remove its metrics."""
        with self._lock:
            self._known.pop(key, None)
            pipeline_measures.forget(key)

    def look(self) -> None:
        """Measure all pipelines once."""
        with self._lock:
            pipelines = dict(self._known)
        if not pipelines:
            return
        self._read_standings(pipelines)
        faults = self._compare(pipelines)
        for key, pipeline in pipelines.items():
            self._progress(key, pipeline.schema, pipeline.topic, pipeline.look)
        observations = {key: self._seen(pipeline, faults.get(key, "")) for key, pipeline in pipelines.items()}
        # Leave out new pipelines until their first measurement is complete.
        observations = {key: seen for key, seen in observations.items() if seen.figures is not None or seen.fault}
        with self._lock:
            observations = {key: seen for key, seen in observations.items() if self._known.get(key) is pipelines[key]}
            for key, seen in observations.items():
                pipeline_measures.show(key, seen.figures)
        for key, seen in observations.items():
            self._show(key, seen)

    def _run(self) -> None:
        began = time.monotonic()
        while not self._stopping.wait(max(_PAUSE_SECONDS, self._interval - (time.monotonic() - began))):
            began = time.monotonic()
            try:
                self.look()
            except TidemillError as error:
                log.warning("figures are not shown: %s", error)
            except Exception:  # the thread must survive every failure of a server
                log.exception("measuring pipelines failed; trying again")

    def _read_standings(self, pipelines: Mapping[Key, _Pipeline]) -> None:
        try:
            standings = self._standings.ask({pipeline.schema for pipeline in pipelines.values()}, _POSTGRES_SECONDS)
        except TidemillError as error:
            standings = {pipeline.schema: str(error) for pipeline in pipelines.values()}
        for pipeline in pipelines.values():
            standing = standings.get(pipeline.schema, "Postgres does not answer in time")
            if isinstance(standing, Standing):
                pipeline.standing, pipeline.fault = standing, ""
            else:
                pipeline.fault = standing

    def _compare(self, pipelines: Mapping[Key, _Pipeline]) -> dict[Key, str]:
        now = self._clock()
        positions = {key: pipeline.standing.as_of(now) for key, pipeline in pipelines.items() if pipeline.standing}
        # Read the lag of Python stages before the lag of processors. Otherwise, a record on the way from stage to
        # processor could be missed.
        stages = self._stages.look(
            {key: pipelines[key].source for key in positions if pipelines[key].source},
            {key: sorted(at) for key, at in positions.items()},
        )
        for key, pipeline in pipelines.items():
            pipeline.stage = stages.get(key)
        compared = against(self._kafka, {key: (pipelines[key].topic, at) for key, at in positions.items()})
        unseen = {key: stage.fault for key, stage in stages.items() if stage.fault}
        partitions = {
            key: comparison.partitions
            for key, comparison in compared.items()
            if not comparison.fault and key not in unseen
        }
        self._date({key: pipelines[key] for key in partitions}, partitions, positions)
        for key, at in partitions.items():
            voids = pipelines[key].voids
            counted = {
                number: replace(partition, position=partition.end) if number in voids else partition
                for number, partition in at.items()
            }
            pipelines[key].figures = self._figures(pipelines[key], positions[key], counted)
            pipelines[key].figures_at = now
        for key, pipeline in pipelines.items():
            pipeline.look = _with_stage(_look(pipeline, compared.get(key), self._kafka), pipeline.stage)
        faults = {key: pipeline.fault for key, pipeline in pipelines.items() if not pipeline.standing}
        return faults | unseen | {key: comparison.fault for key, comparison in compared.items() if comparison.fault}

    def _figures(self, pipeline: _Pipeline, positions: Mapping[int, Position], partitions: Partitions) -> Figures:
        standing, now = pipeline.standing, self._now()
        assert standing is not None  # noqa: S101 - it contains `positions`
        watermark = standing.watermark_ms
        dated = {**pipeline.noticed, **pipeline.arrivals}
        ages = {number: max(0.0, now - dated[number][1]) for number in oldest(partitions)}
        stage = pipeline.stage or StageLook()
        ages = {number: max(ages.get(number, 0.0), stage.ages.get(number, 0.0)) for number in {**ages, **stage.ages}}
        return Figures(
            lag=sum(partition.lag for partition in partitions.values()) + sum(stage.lag.values()),
            lag_seconds=max(ages.values(), default=0.0),
            freshness_seconds=freshness_seconds(positions, ages),
            watermark_age_seconds=None if watermark is None else max(0.0, now - watermark / 1000),
            positions_at=now - (self._clock() - standing.at),
            stage_lag=sum(stage.lag.values()) if pipeline.source else None,
            stage_lag_seconds=max(stage.ages.values(), default=0.0),
        )

    def _date(
        self,
        pipelines: Mapping[Key, _Pipeline],
        partitions: Mapping[Key, Partitions],
        positions: Mapping[Key, Mapping[int, Position]],
    ) -> None:
        asked: list[dict[Place, int]] = []
        for key, at in partitions.items():
            pipeline, wanted = pipelines[key], oldest(at)
            pipeline.arrivals = _still(pipeline.arrivals, wanted)
            pipeline.noticed = _still(pipeline.noticed, wanted)
            spans = {number: (offset, at[number].end) for number, offset in wanted.items()}
            pipeline.voids = {number: span for number, span in pipeline.voids.items() if spans.get(number) == span}
            for number, offset in wanted.items():
                pipeline.noticed.setdefault(number, (offset, self._now()))
                if number not in pipeline.arrivals and number not in pipeline.voids:
                    _put(asked, positions[key][number].at(pipeline.topic, number), offset)
        for places in asked:
            arrived = self._kafka.arrivals(places)
            for key, at in partitions.items():
                for number, offset in oldest(at).items():
                    place = positions[key][number].at(pipelines[key].topic, number)
                    if place not in arrived or places[place] != offset:
                        continue
                    moment = arrived[place]
                    if moment is None:
                        pipelines[key].voids[number] = (offset, at[number].end)
                    else:
                        pipelines[key].arrivals[number] = (offset, moment / 1000)

    def _seen(self, pipeline: _Pipeline, fault: str) -> Observation:
        if self._clock() - pipeline.figures_at > FRESH_SECONDS:
            pipeline.figures = None
            return Observation(None, fault or "the figures were not read in time", self._now())
        return Observation(pipeline.figures, "", self._now())


def _look(pipeline: _Pipeline, compared: Compared | None, kafka: KafkaLog) -> Look:
    """Return the progress of each partition with a known end.

    If the progress is unknown, return the reason.
    """
    if isinstance(pipeline.fault, NotThere):
        return {}  # if a schema has no positions, the reconcile pass reports this
    if not pipeline.fault and pipeline.standing is not None and (error := unread(pipeline.standing.unread)):
        return error
    if pipeline.fault or pipeline.standing is None or compared is None:
        return TidemillError(Reason.UNREACHABLE, pipeline.fault, "check that Postgres runs")
    if compared.fault and not compared.partitions:
        return TidemillError(Reason.UNREACHABLE, compared.fault, f"check that {kafka.brokers} run")
    positions = pipeline.standing.positions
    return {
        number: Progress(
            0 if number in pipeline.voids else partition.lag, (partition.position, positions[number].confirmed_ms)
        )
        for number, partition in compared.partitions.items()
    }


def _with_stage(look: Look, stage: StageLook | None) -> Look:
    if stage is None or isinstance(look, TidemillError):
        return look
    if stage.error is not None:
        return stage.error
    return {
        number: Progress(
            at.lag + stage.lag.get(number, 0), ((at.read[0] or 0) + stage.positions.get(number, 0), at.read[1])
        )
        for number, at in look.items()
    }


def _still(dated: Arrivals, wanted: Mapping[int, int]) -> Arrivals:
    return {number: (offset, at) for number, (offset, at) in dated.items() if wanted.get(number) == offset}


def _put(asked: list[dict[Place, int]], place: Place, offset: int) -> None:
    """Put the offset of a partition into a request in `asked`.

    One request cannot contain two offsets of the same partition. The function then appends a second request.
    """
    for places in asked:
        if places.setdefault(place, offset) == offset:
            return
    asked.append({place: offset})


class _Patient:
    """A request in a separate thread. The caller waits only a limited time for the answer."""

    def __init__(self, ask: Callable[[set[str]], dict[str, Standing | str]]) -> None:
        self._ask = ask
        self._pending: Future[dict[str, Standing | str]] | None = None

    def ask(self, schemas: set[str], seconds: float) -> dict[str, Standing | str]:
        """Return the answer, or an empty mapping if no answer arrives in time."""
        late = self._pending is not None
        if self._pending is None:
            self._pending = Future()
            threading.Thread(target=self._run, args=(self._pending, schemas), name="standings", daemon=True).start()
        try:
            standings = self._pending.result(0.0 if late else seconds)
        except FutureTimeout:
            if self._pending.done():
                self._pending = None
            return {}
        except BaseException:
            self._pending = None
            raise
        self._pending = None
        return standings

    def _run(self, pending: Future[dict[str, Standing | str]], schemas: set[str]) -> None:
        try:
            pending.set_result(self._ask(schemas))
        except BaseException as error:
            pending.set_exception(error)
