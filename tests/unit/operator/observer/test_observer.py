"""Tests of an observer of figures. Kafka and Postgres in memory answer, fail and recover."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pytest
from prometheus_client import REGISTRY

from tidemill_contract import names
from tidemill_contract.stage_records import STAGE_RUNNING
from tidemill_operator.actuators.kafka.groups import CommittedOffset
from tidemill_operator.actuators.kafka.offsets import EARLIEST, Offsets, PartitionId
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.observer import observer, stages
from tidemill_operator.observer.backlog import NoPositions, Position, StoredProgress, freshness_seconds
from tidemill_operator.observer.figures import Figures, Observation
from tidemill_operator.observer.observer import Observer
from tidemill_operator.observer.progress import Progress, ProgressResult
from waiting import eventually

KEY = Key("shop", "orders", "u")
TOPIC, SCHEMA = "shop.orders.events", "shop__orders"
NOW = 1_800_000_000.0


class Kafka:
    """Kafka with two partitions. The test sets their ends, and each record arrived a second after the one before."""

    name, brokers = "Kafka", "Kafka's brokers"

    def __init__(self) -> None:
        self.ends: dict[PartitionId, int] = {(TOPIC, 0): 10, (TOPIC, 1): 10}
        self.away, self.leaderless = False, set[int]()
        self.reads: list[Mapping[PartitionId, int]] = []
        self.unreadable = False
        self.markers: set[int] = set()
        self.config: dict[str, Any] = {}

    def offsets(self, places: Collection[PartitionId], spec: Any) -> Offsets:
        if self.away:
            return Offsets({}, dict.fromkeys(places, "its leader does not answer"))
        answered = {
            place: 0 if spec is EARLIEST else self.ends[place] for place in places if place[1] not in self.leaderless
        }
        return Offsets(answered, {place: "no leader" for place in places if place[1] in self.leaderless})

    def arrival_times(self, places: Mapping[PartitionId, int]) -> dict[PartitionId, int | None]:
        self.reads.append(dict(places))
        arrived = {place: int(NOW * 1000) - 60_000 + 1000 * at for place, at in places.items()}
        return (
            {}
            if self.unreadable
            else {place: None if place[1] in self.markers else at for place, at in arrived.items()}
        )


class World:
    """An observer with servers in memory, and the figures that it shows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kafka, self.at, self.shown = Kafka(), 0.0, dict[Key, Observation]()
        self.results: list[ProgressResult] = []
        self.position, self.watermark = 10, int(NOW * 1000) - 5_000
        self.fault: Exception | str | None = None
        self.unread: tuple[tuple[str, str], ...] = ()
        monkeypatch.setattr(observer, "read_progress", self._read_progress)
        self.observer = Observer(
            self.kafka,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            self.shown.__setitem__,
            progress=lambda *arguments: self.results.append(arguments[3]),
            now=lambda: NOW + self.at,
            clock=lambda: self.at,
        )
        self.observer.watch(KEY, SCHEMA, TOPIC)

    def _read_progress(self, _: Any, schemas: Collection[str]) -> dict[str, StoredProgress | str]:
        if isinstance(self.fault, Exception):
            raise self.fault
        positions = {number: Position(self.position, self.position, 300, 0) for number in (0, 1)}
        stored = StoredProgress(positions, self.watermark, self.at, self.unread)
        return {schema: self.fault or stored for schema in schemas}

    def measure(self, seconds: float = 5.0) -> Observation | None:
        self.at += seconds
        self.observer.measure()
        return self.shown.get(KEY)

    def observation(self) -> Observation:
        observation = self.measure()
        assert observation is not None
        return observation

    def figures(self) -> Figures:
        observation = self.observation()
        assert observation.figures is not None, observation.fault
        return observation.figures


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def metric(name: str) -> float | None:
    return REGISTRY.get_sample_value(f"tidemill_pipeline_{name}", {"namespace": "shop", "pipeline": "orders"})


def test_a_pipeline_that_keeps_up_has_no_lag(world: World) -> None:
    assert world.figures() == Figures(0, 0.0, 0.3, 10.0, positions_at=NOW + 5.0)
    assert (metric("lag_events"), metric("freshness_seconds"), metric("figures_available")) == (0.0, 0.3, 1.0)
    assert world.kafka.reads == []


def test_the_age_of_the_oldest_uncounted_event_grows(world: World) -> None:
    """The event is read once. Freshness is at least the age of the event."""
    world.kafka.ends[TOPIC, 1] = 30
    first, second = world.figures(), world.figures()
    assert (first.lag, first.lag_seconds, first.freshness_seconds) == (20, 55.0, 55.0)
    assert (second.lag, second.lag_seconds, second.freshness_seconds) == (20, 60.0, 60.0)
    assert world.kafka.reads == [{(TOPIC, 1): 10}]
    assert metric("lag_seconds") == 60.0


def test_an_unreadable_event_is_as_old_as_its_first_sight(world: World) -> None:
    world.kafka.ends[TOPIC, 1], world.kafka.unreadable = 30, True
    assert [world.figures().lag_seconds for _ in range(3)] == [0.0, 5.0, 10.0]
    world.kafka.unreadable = False
    assert world.figures().lag_seconds == 70.0


def test_transaction_markers_are_no_lag(world: World) -> None:
    """Markers behind the last position are no lag. Events after a marker are lag."""
    world.kafka.ends[TOPIC, 1], world.kafka.markers = 12, {1}
    assert [world.figures().lag for _ in range(3)] == [0, 0, 0]
    assert len(world.kafka.reads) == 1
    world.kafka.ends[TOPIC, 1], world.kafka.markers = 14, set()
    assert world.figures().lag == 4


@pytest.mark.parametrize(
    "fault", [TidemillError(Reason.UNREACHABLE, "away"), "positions of schema shop__orders: a lock"], ids=str
)
def test_without_postgres_the_last_positions_are_compared_with_current_ends(
    world: World, fault: Exception | str
) -> None:
    """Lag and ages grow, and the time of the positions is shown."""
    world.figures()
    world.fault = fault
    for round in range(1, 10):
        world.kafka.ends[TOPIC, 0] += 100
        figures = world.figures()
        assert figures.lag == 100 * round
        assert figures.lag_seconds == 50.0 + 5.0 * (round + 1)
        assert figures.watermark_age_seconds == 5.0 + 5.0 * (round + 1)
        assert figures.positions_at == NOW + 5.0


def test_positions_that_were_never_read_are_a_fault(world: World) -> None:
    """The fault is shown after the time that any figures may take."""
    world.fault = TidemillError(Reason.UNREACHABLE, "Postgres is away")
    assert [world.measure() for _ in range(3)] == [None, None, None]
    assert world.measure() == Observation(None, "Postgres is away", NOW + 20.0)
    assert (metric("figures_available"), metric("lag_events")) == (0.0, None)


def test_without_ends_figures_are_removed_once_they_are_old(world: World) -> None:
    """The first successful measurement shows figures again."""
    before = world.figures()
    world.kafka.away = True
    for _ in range(3):
        assert world.observation().figures == before
    observation = world.observation()
    assert observation.figures is None
    assert "its leader does not answer" in observation.fault
    assert (metric("figures_available"), metric("lag_events"), metric("lag_seconds")) == (0.0, None, None)
    world.kafka.away = False
    assert world.figures().lag == 0


def test_progress_is_reported_in_each_round_before_figures_are_shown(world: World) -> None:
    """A partition without a leader is left out. Servers that do not answer are reported, without older positions."""
    world.kafka.ends[TOPIC, 1] = 30

    def show(*_: Any) -> None:
        raise TidemillError(Reason.UNREACHABLE, "the API is away")

    world.observer._show_observation = show
    with pytest.raises(TidemillError):
        world.measure()
    world.observer._show_observation = world.shown.__setitem__
    assert world.results.pop() == {0: Progress(0, (10, None)), 1: Progress(20, (10, None))}
    world.kafka.leaderless = {0}
    world.measure()
    assert world.results.pop() == {1: Progress(20, (10, None))}
    world.kafka.leaderless, world.kafka.away = set(), True
    world.measure()
    assert "its leader does not answer" in str(world.results.pop())
    world.kafka.away, world.fault = False, "positions of schema shop__orders: a lock"
    world.measure()
    assert str(world.results.pop()) == "positions of schema shop__orders: a lock; check that Postgres runs"
    world.fault = NoPositions("positions of schema shop__orders: there is no table _offsets")
    world.measure()
    assert world.results.pop() == {}


def test_a_forgotten_pipeline_has_no_figures(world: World) -> None:
    world.figures()
    world.observer.forget(KEY)
    world.shown.clear()
    assert world.measure() is None
    assert metric("figures_available") is None


def test_each_pipeline_on_a_topic_has_the_age_of_its_next_record(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Key("shop", "other", "v")
    world.observer.watch(other, "shop__other", TOPIC)
    places = {SCHEMA: 10, "shop__other": 20}

    def read_progress(_: Any, schemas: Collection[str]) -> Mapping[str, StoredProgress | str]:
        return {s: StoredProgress({0: Position(places[s], 0, None, 0)}, None, world.at) for s in schemas}

    monkeypatch.setattr(observer, "read_progress", read_progress)
    world.kafka.ends[TOPIC, 0] = 30
    world.measure()
    ages = {
        key.name: observation.figures.lag_seconds for key, observation in world.shown.items() if observation.figures
    }
    assert ages == {"orders": 55.0, "other": 45.0}


def test_an_error_of_showing_is_raised_after_all_metrics_are_set(world: World) -> None:
    world.observer.watch(Key("shop", "another", "v"), SCHEMA, TOPIC)

    def show(*_: Any) -> None:
        raise TidemillError(Reason.UNREACHABLE, "the API is away")

    world.observer._show_observation = show
    with pytest.raises(TidemillError):
        world.measure()
    labels = {"namespace": "shop", "pipeline": "another"}
    assert metric("lag_events") == 0.0
    assert REGISTRY.get_sample_value("tidemill_pipeline_lag_events", labels) == 0.0
    world.observer.forget(Key("shop", "another", "v"))


FRESHNESS: list[tuple[str, dict[int, Position], dict[int, float], float | None]] = [
    ("no partitions", {}, {}, None),
    ("nothing read", {0: Position(None, 0, None, 0)}, {}, None),
    ("read to the end", {0: Position(5, 5, 300, 59_999)}, {}, 0.3),
    ("nothing arrives", {0: Position(5, 5, 300, 60_000)}, {}, None),
    ("an event after an hour", {0: Position(5, 5, 300, 3_600_000)}, {0: 0.2}, 0.2),
    ("an uncounted event", {0: Position(5, 5, 300, 60_000)}, {0: 61.0}, 61.0),
    ("the worst partition counts", {0: Position(5, 5, 300, 0), 1: Position(9, 9, 2_500, 0)}, {0: 1.0}, 2.5),
]


@pytest.mark.parametrize(("reason", "positions", "ages", "expected"), FRESHNESS, ids=[row[0] for row in FRESHNESS])
def test_freshness_is_that_of_the_worst_partition(
    reason: str, positions: dict[int, Position], ages: dict[int, float], expected: float | None
) -> None:
    assert freshness_seconds(positions, ages) == expected


def test_a_hanging_server_is_asked_once_and_not_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later rounds continue without the server at once. Its late answer still counts."""
    answering, questions = threading.Event(), []

    def hang(_: Any, schemas: Collection[str]) -> Mapping[str, StoredProgress | str]:
        questions.append(schemas)
        at = world.at
        answering.wait(30)
        return {SCHEMA: StoredProgress({0: Position(10, 10, 300, 0), 1: Position(10, 10, 300, 0)}, None, at)}

    monkeypatch.setattr(observer, "read_progress", hang)
    monkeypatch.setattr(observer, "_POSTGRES_SECONDS", 0.05)
    assert [world.measure() for _ in range(3)] == [None, None, None]
    assert world.observation().fault == "Postgres does not answer in time"
    assert len(questions) == 1
    answering.set()
    eventually(
        lambda: (observation := world.measure(0.01)) is not None and observation.figures is not None,
        what="the late answer is shown",
    )


def test_an_unread_lookup_is_the_reason_that_no_event_is_counted(world: World) -> None:
    world.unread = (("plans", "file plans.csv: cannot be read; create it"),)
    assert world.figures().lag == 0
    outcome = world.results[-1]
    assert isinstance(outcome, TidemillError)
    assert outcome.reason == Reason.LOOKUP_UNREAD
    assert str(outcome).startswith(
        "lookup plans was not read yet: file plans.csv: cannot be read; create it; events wait"
    )
    world.unread = ()
    assert world.figures().lag == 0
    assert isinstance(world.results[-1], dict)


def test_events_that_wait_before_a_python_stage_are_lag(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transaction markers before the stage are no lag. A stage that waits is the reason that no event is counted."""
    source, offsets = "shop.orders.raw", {"stage": {0: (40, ""), 1: (7, "")}, "stage-state": {0: (0, STAGE_RUNNING)}}

    def committed(
        _config: Any, groups: Sequence[str], _seconds: float
    ) -> dict[str, dict[PartitionId, CommittedOffset]]:
        by_group = {names.consumer_group("shop", "orders", reader): at for reader, at in offsets.items()}
        return {
            group: {
                (source, part): CommittedOffset(*committed_offset) for part, committed_offset in by_group[group].items()
            }
            for group in groups
        }

    monkeypatch.setattr(stages, "committed_offsets", committed)
    world.kafka.ends |= {(source, 0): 50, (source, 1): 7, (TOPIC, 1): 30}
    world.observer.watch(KEY, SCHEMA, TOPIC, source)
    figures = world.figures()
    assert (figures.lag, figures.lag_seconds) == (20 + 10, 55.0)
    assert (figures.stage_lag, metric("stage_lag_events")) == (10, 10.0)
    assert world.results[-1] == {0: Progress(10, (50, None)), 1: Progress(20, (17, None))}
    assert (world.figures().lag, len(world.kafka.reads)) == (30, 2)  # each record is read once
    world.kafka.ends[source, 1], world.kafka.markers = 9, {1}
    world.kafka.ends[TOPIC, 1] = 10
    assert world.figures().lag == 10
    offsets["stage-state"] = {0: (0, "enrich.py has no function enrich")}
    assert world.figures().lag == 10
    outcome = world.results[-1]
    assert isinstance(outcome, TidemillError)
    assert (outcome.reason, outcome.message) == (
        "StageWaits",
        "the Python stage waits: enrich.py has no function enrich",
    )

    def away(*_: Any) -> Any:
        raise TidemillError(Reason.UNREACHABLE, "reading offsets: Kafka does not answer")

    monkeypatch.setattr(stages, "committed_offsets", away)
    observation = [world.observation() for _ in range(4)][-1]
    assert (observation.figures, observation.fault) == (None, "reading offsets: Kafka does not answer")
