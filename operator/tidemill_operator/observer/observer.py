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

from tidemill_operator.actuators.kafka.offsets import OffsetReader, PartitionId
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.observer import metrics as pipeline_metrics
from tidemill_operator.observer.backlog import (
    Backlog,
    NoPositions,
    Partitions,
    Position,
    StoredProgress,
    freshness_seconds,
    oldest_offsets,
    read_backlogs,
    read_progress,
)
from tidemill_operator.observer.figures import FRESH_SECONDS, Figures, Observation
from tidemill_operator.observer.progress import Progress, ProgressResult
from tidemill_operator.observer.stages import StageProgress, StageReader
from tidemill_operator.plan.postgres.lookups import unread_lookups_error

log = logging.getLogger(__name__)
INTERVAL_SECONDS = 5.0
# Short timeouts keep each round of measurements short, so that the figures stay current.
_POSTGRES_SECONDS, KAFKA_SECONDS = 3.0, 4.0
_PAUSE_SECONDS = 0.5

ShowObservation = Callable[[Key, Observation], None]
ReportProgress = Callable[[Key, str, str, ProgressResult], None]
Arrivals = dict[int, tuple[int, float]]


@dataclass
class _Pipeline:
    """The state of an observed pipeline.

    Attributes:
        arrivals: by partition, the offset of the oldest uncounted record, and the epoch second of its arrival.
        noticed: like `arrivals`, but with the epoch second at which the observer first saw the record.
        marker_only: partitions whose remaining records are only transaction markers.
    """

    schema: str
    topic: str
    figures_at: float
    stored_progress: StoredProgress | None = None
    source: str = ""
    stage: StageProgress | None = None
    fault: str = "nothing was read yet"
    progress: ProgressResult = field(default_factory=dict)
    arrivals: Arrivals = field(default_factory=dict)
    noticed: Arrivals = field(default_factory=dict)
    marker_only: dict[int, tuple[int, int]] = field(default_factory=dict)
    figures: Figures | None = None


class Observer:
    """An observer that measures pipelines until it is stopped.

    Any thread may call `watch` and `forget`. In each round, the observer calls `progress` and then `show` for each
    pipeline.
    """

    def __init__(
        self,
        kafka: OffsetReader,
        postgres: PostgresAddress,
        show: ShowObservation,
        *,
        progress: ReportProgress = lambda *_: None,
        interval_seconds: float = INTERVAL_SECONDS,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kafka, self._show_observation, self._report_progress, self._interval = (
            kafka,
            show,
            progress,
            interval_seconds,
        )
        self._now, self._monotonic = now, clock
        self._progress_reader = _BackgroundReader(lambda schemas: read_progress(postgres, schemas))
        self._stage_reader = StageReader(kafka, now=now)
        self._pipelines: dict[Key, _Pipeline] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tidemill-observer", daemon=True)

    def start(self) -> None:
        """Start measuring."""
        self._thread.start()

    def request_stop(self) -> None:
        """Tell the observer to stop after the current round, and return immediately."""
        self._stopping.set()

    def stop(self) -> None:
        """Stop measuring, and wait for the end of the current round."""
        self.request_stop()
        if self._thread.is_alive():
            self._thread.join(_POSTGRES_SECONDS + 2 * KAFKA_SECONDS)

    def watch(self, key: Key, schema: str, topic: str, source: str = "") -> None:
        """Start measuring a pipeline."""
        with self._lock:
            pipeline = self._pipelines.get(key)
            if pipeline is None or (pipeline.schema, pipeline.topic, pipeline.source) != (schema, topic, source):
                self._pipelines[key] = _Pipeline(schema, topic, self._monotonic(), source=source)

    def forget(self, key: Key) -> None:
        """Stop measuring a pipeline, and remove its metrics."""
        with self._lock:
            self._pipelines.pop(key, None)
            pipeline_metrics.remove(key)

    def measure(self) -> None:
        """Measure all pipelines once."""
        with self._lock:
            pipelines = dict(self._pipelines)
        if not pipelines:
            return
        self._read_stored_progress(pipelines)
        faults = self._update_figures(pipelines)
        for key, pipeline in pipelines.items():
            self._report_progress(key, pipeline.schema, pipeline.topic, pipeline.progress)
        observations = {key: self._observation(pipeline, faults.get(key, "")) for key, pipeline in pipelines.items()}
        # Leave out new pipelines until their first measurement is complete.
        known = [
            key for key, observation in observations.items() if observation.figures is not None or observation.fault
        ]
        with self._lock:
            shown = {key: observations[key] for key in known if self._pipelines.get(key) is pipelines[key]}
            for key, observation in shown.items():
                pipeline_metrics.export(key, observation.figures)
        for key, observation in shown.items():
            self._show_observation(key, observation)

    def _run(self) -> None:
        began = time.monotonic()
        while not self._stopping.wait(max(_PAUSE_SECONDS, self._interval - (time.monotonic() - began))):
            began = time.monotonic()
            try:
                self.measure()
            except TidemillError as error:
                log.warning("figures are not shown: %s", error)
            except Exception:  # the thread must survive every failure of a server
                log.exception("measuring pipelines failed; trying again")

    def _read_stored_progress(self, pipelines: Mapping[Key, _Pipeline]) -> None:
        try:
            progress = self._progress_reader.read(
                {pipeline.schema for pipeline in pipelines.values()}, _POSTGRES_SECONDS
            )
        except TidemillError as error:
            progress = {pipeline.schema: str(error) for pipeline in pipelines.values()}
        for pipeline in pipelines.values():
            result = progress.get(pipeline.schema, "Postgres does not answer in time")
            if isinstance(result, StoredProgress):
                pipeline.stored_progress, pipeline.fault = result, ""
            else:
                pipeline.fault = result

    def _update_figures(self, pipelines: Mapping[Key, _Pipeline]) -> dict[Key, str]:
        monotonic_now = self._monotonic()
        positions = {
            key: pipeline.stored_progress.as_of(monotonic_now)
            for key, pipeline in pipelines.items()
            if pipeline.stored_progress
        }
        # Read the lag of Python stages before the lag of processors. Otherwise, a record on the way from stage to
        # processor could be missed.
        stages = self._stage_reader.read_progress(
            {key: pipelines[key].source for key in positions if pipelines[key].source},
            {key: sorted(own_positions) for key, own_positions in positions.items()},
        )
        for key, pipeline in pipelines.items():
            pipeline.stage = stages.get(key)
        backlogs = read_backlogs(
            self._kafka, {key: (pipelines[key].topic, own_positions) for key, own_positions in positions.items()}
        )
        stage_faults = {key: stage.fault for key, stage in stages.items() if stage.fault}
        partitions = {
            key: backlog.partitions
            for key, backlog in backlogs.items()
            if not backlog.fault and key not in stage_faults
        }
        self._update_arrivals({key: pipelines[key] for key in partitions}, partitions, positions)
        for key, own_partitions in partitions.items():
            marker_only = pipelines[key].marker_only
            counted = {
                number: replace(partition, position=partition.end) if number in marker_only else partition
                for number, partition in own_partitions.items()
            }
            pipelines[key].figures = self._figures(pipelines[key], positions[key], counted)
            pipelines[key].figures_at = monotonic_now
        for key, pipeline in pipelines.items():
            pipeline.progress = _with_stage(
                _partition_progress(pipeline, backlogs.get(key), self._kafka), pipeline.stage
            )
        faults = {key: pipeline.fault for key, pipeline in pipelines.items() if not pipeline.stored_progress}
        return faults | stage_faults | {key: backlog.fault for key, backlog in backlogs.items() if backlog.fault}

    def _figures(self, pipeline: _Pipeline, positions: Mapping[int, Position], partitions: Partitions) -> Figures:
        stored, now = pipeline.stored_progress, self._now()
        assert stored is not None  # noqa: S101 - it contains `positions`
        watermark = stored.watermark_ms
        arrivals = {**pipeline.noticed, **pipeline.arrivals}
        ages = {number: max(0.0, now - arrivals[number][1]) for number in oldest_offsets(partitions)}
        stage = pipeline.stage or StageProgress()
        ages = {number: max(ages.get(number, 0.0), stage.ages.get(number, 0.0)) for number in {**ages, **stage.ages}}
        return Figures(
            lag=sum(partition.lag for partition in partitions.values()) + sum(stage.lag.values()),
            lag_seconds=max(ages.values(), default=0.0),
            freshness_seconds=freshness_seconds(positions, ages),
            watermark_age_seconds=None if watermark is None else max(0.0, now - watermark / 1000),
            positions_at=now - (self._monotonic() - stored.at),
            stage_lag=sum(stage.lag.values()) if pipeline.source else None,
            stage_lag_seconds=max(stage.ages.values(), default=0.0),
        )

    def _update_arrivals(
        self,
        pipelines: Mapping[Key, _Pipeline],
        partitions: Mapping[Key, Partitions],
        positions: Mapping[Key, Mapping[int, Position]],
    ) -> None:
        requests: list[dict[PartitionId, int]] = []
        for key, own_partitions in partitions.items():
            pipeline, wanted = pipelines[key], oldest_offsets(own_partitions)
            pipeline.arrivals = _still_wanted(pipeline.arrivals, wanted)
            pipeline.noticed = _still_wanted(pipeline.noticed, wanted)
            spans = {number: (offset, own_partitions[number].end) for number, offset in wanted.items()}
            pipeline.marker_only = {
                number: span for number, span in pipeline.marker_only.items() if spans.get(number) == span
            }
            for number, offset in wanted.items():
                pipeline.noticed.setdefault(number, (offset, self._now()))
                if number not in pipeline.arrivals and number not in pipeline.marker_only:
                    _add_request(requests, positions[key][number].resolve_place(pipeline.topic, number), offset)
        for places in requests:
            arrived = self._kafka.arrival_times(places)
            for key, own_partitions in partitions.items():
                for number, offset in oldest_offsets(own_partitions).items():
                    place = positions[key][number].resolve_place(pipelines[key].topic, number)
                    if place not in arrived or places[place] != offset:
                        continue
                    moment = arrived[place]
                    if moment is None:
                        pipelines[key].marker_only[number] = (offset, own_partitions[number].end)
                    else:
                        pipelines[key].arrivals[number] = (offset, moment / 1000)

    def _observation(self, pipeline: _Pipeline, fault: str) -> Observation:
        if self._monotonic() - pipeline.figures_at > FRESH_SECONDS:
            pipeline.figures = None
            return Observation(None, fault or "the figures were not read in time", self._now())
        return Observation(pipeline.figures, "", self._now())


def _partition_progress(pipeline: _Pipeline, backlog: Backlog | None, kafka: OffsetReader) -> ProgressResult:
    """Return the progress of each partition with a known end.

    If the progress is unknown, return the reason.
    """
    if isinstance(pipeline.fault, NoPositions):
        return {}  # if a schema has no positions, the reconcile pass reports this
    if (
        not pipeline.fault
        and pipeline.stored_progress is not None
        and (error := unread_lookups_error(pipeline.stored_progress.unread_lookups))
    ):
        return error
    if pipeline.fault or pipeline.stored_progress is None or backlog is None:
        return TidemillError(Reason.UNREACHABLE, pipeline.fault, "check that Postgres runs")
    if backlog.fault and not backlog.partitions:
        return TidemillError(Reason.UNREACHABLE, backlog.fault, f"check that {kafka.brokers} run")
    positions = pipeline.stored_progress.positions
    return {
        number: Progress(
            0 if number in pipeline.marker_only else partition.lag, (partition.position, positions[number].confirmed_ms)
        )
        for number, partition in backlog.partitions.items()
    }


def _with_stage(progress: ProgressResult, stage: StageProgress | None) -> ProgressResult:
    if stage is None or isinstance(progress, TidemillError):
        return progress
    if stage.error is not None:
        return stage.error
    return {
        number: Progress(
            partition.lag + stage.lag.get(number, 0),
            ((partition.position[0] or 0) + stage.positions.get(number, 0), partition.position[1]),
        )
        for number, partition in progress.items()
    }


def _still_wanted(arrivals: Arrivals, wanted: Mapping[int, int]) -> Arrivals:
    return {n: (offset, arrived_at) for n, (offset, arrived_at) in arrivals.items() if wanted.get(n) == offset}


def _add_request(requests: list[dict[PartitionId, int]], place: PartitionId, offset: int) -> None:
    """Put the offset of a partition into one of `requests`.

    One request cannot contain two offsets of the same partition. The function then appends a second request.
    """
    for places in requests:
        if places.setdefault(place, offset) == offset:
            return
    requests.append({place: offset})


class _BackgroundReader:
    """Reads progress in a separate thread. The caller waits only a limited time for the answer."""

    def __init__(self, ask: Callable[[set[str]], dict[str, StoredProgress | str]]) -> None:
        self._ask = ask
        self._pending: Future[dict[str, StoredProgress | str]] | None = None

    def read(self, schemas: set[str], seconds: float) -> dict[str, StoredProgress | str]:
        """Return the answer, or an empty mapping if no answer arrives in time."""
        late = self._pending is not None
        if self._pending is None:
            self._pending = Future()
            threading.Thread(target=self._run, args=(self._pending, schemas), name="progress", daemon=True).start()
        try:
            progress = self._pending.result(0.0 if late else seconds)
        except FutureTimeout:
            if self._pending.done():
                self._pending = None
            return {}
        except BaseException:
            self._pending = None
            raise
        self._pending = None
        return progress

    def _run(self, pending: Future[dict[str, StoredProgress | str]], schemas: set[str]) -> None:
        try:
            pending.set_result(self._ask(schemas))
        except BaseException as error:
            pending.set_exception(error)
