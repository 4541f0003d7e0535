"""The simulation of scaling: its world, the policies in it, and what Tidemill's policy has to reach there."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from xml.dom import minidom

import pytest

from sim.compare import Comparison, compare, is_better, totals
from sim.oracle import fewest_hours
from sim.policies import FLINK_TUNED, Flink, Keda, Tidemill, View
from sim.report import to_json, write
from sim.run import ALLOWED_LAG, POLL_SECONDS, Result, run
from sim.shapes import Shape, recorded, shapes
from sim.world import STEP_SECONDS, Setup, World
from tidemill_operator.scaling import Figures, PartitionFigures

SHAPES = {shape.name: shape for shape in shapes()}
EVEN = (1.0,) * 12
AMPLE = 1e9
CATCH_UP_SECONDS = 300.0
STABILIZATION_SECONDS = 600.0


def steps(world: World, seconds: float, rate: float, *, database: float = AMPLE, stuck: Sequence[int] = ()) -> None:
    for _ in range(round(seconds / STEP_SECONDS)):
        world.step(rate, database=database, stuck=frozenset(stuck))


def test_a_replica_does_its_capacity_and_no_more() -> None:
    """What comes beyond it waits."""
    world = World(Setup(capacity=1000.0), EVEN)
    steps(world, 10, 1500.0)
    assert world.lag == pytest.approx(5000.0)
    steps(world, 10, 500.0)
    assert world.lag == pytest.approx(0.0, abs=1e-6)


def test_a_new_replica_helps_after_its_start_and_the_rebalance() -> None:
    """It is paid for from the beginning; joining stops all."""
    world = World(Setup(capacity=1000.0, start_seconds=20.0, pause_seconds=5.0), EVEN)
    world.scale(2)
    assert (world.replicas, world.joined, world.rebalances) == (2, 1, 0)
    assert world.figures().rolling_out
    steps(world, 20, 1000.0)
    assert world.lag == pytest.approx(0.0, abs=1e-6)
    steps(world, 5, 1000.0)
    assert (world.joined, world.rebalances) == (2, 1)
    assert world.lag == pytest.approx(5000.0)
    steps(world, 5, 1000.0)
    assert world.lag == pytest.approx(0.0, abs=1e-6)


def test_the_database_limits_all_and_is_seen_to() -> None:
    """However many replicas there are."""
    world = World(Setup(capacity=1000.0), EVEN, replicas=4)
    steps(world, 10, 3000.0, database=2000.0)
    assert world.lag == pytest.approx(10_000.0)
    assert world.figures().database_saturated
    world.polled()
    steps(world, 30, 1000.0, database=4000.0)
    assert not world.figures().database_saturated


def test_a_stuck_partition_waits_and_the_others_do_not() -> None:
    world = World(Setup(capacity=1000.0), EVEN)
    steps(world, 12.5, 120.0, stuck=(3,))
    assert {p: f.lag for p, f in world.figures().partitions.items() if f.lag} == {3: 125}


def view(*lags: int, replicas: int = 1, now: float = 0.0, busy: float = 1.0, consumed: int = 0) -> View:
    share = consumed // max(1, len(lags))
    parts = {p: PartitionFigures(0, share + lag, share, share) for p, lag in enumerate(lags)}
    return View(now, replicas, len(lags), Figures(parts, replicas), busy)


@pytest.mark.parametrize(
    ("lag", "replicas", "expected", "reason"),
    [
        (0, 1, 1, "at least one"),
        (105, 1, 1, "within the tolerance of a tenth"),
        (111, 1, 2, "beyond it, up to the next whole"),
        (450, 2, 5, "lag over threshold, at once"),
        (1200, 1, 5, "at most four more"),
        (1200, 5, 10, "or twice as many"),
        (5000, 10, 12, "no more than partitions"),
    ],
)
def test_keda_asks_for_lag_over_threshold(lag: int, replicas: int, expected: int, reason: str) -> None:
    lags = (lag, *(0,) * 11)
    assert Keda(threshold=100).decide(view(*lags, replicas=replicas))[0] == expected, reason


def test_keda_goes_down_to_the_highest_of_five_minutes() -> None:
    policy = Keda(threshold=100)
    assert policy.decide(view(*(50,) * 12, replicas=3, now=0.0))[0] == 6
    assert policy.decide(view(*(0,) * 12, replicas=6, now=299.0))[0] == 6
    assert policy.decide(view(*(0,) * 12, replicas=6, now=300.0))[0] == 1


def flink(lag: int, *, processed: float, busy: float, replicas: int = 2) -> int:
    """The decision after a full window with steady lag, so many events a second done so busily."""
    policy, answer = Flink(FLINK_TUNED), replicas
    for now in range(0, 301, 15):
        seen = view(*(lag // 12,) * 12, replicas=replicas, now=now, busy=busy, consumed=int(processed * now))
        answer = policy.decide(seen)[0]
    return answer


@pytest.mark.parametrize(
    ("lag", "processed", "busy", "expected", "reason"),
    [
        (0, 1400.0, 0.7, 2, "at the target"),
        (0, 1700.0, 0.85, 2, "within the boundary"),
        (0, 1880.0, 0.94, 3, "1880 / 0.7 + 188 over a true rate of 2000, of two: 2.9"),
        (300_000, 2000.0, 1.0, 6, "1000 to catch up, 200 for the restart, 2857: 4.06, so 5, and 6 divides"),
        (0, 400.0, 0.2, 2, "down only after a while"),
    ],
)
def test_flink_asks_for_what_the_true_rate_needs(
    lag: int, processed: float, busy: float, expected: int, reason: str
) -> None:
    assert flink(lag, processed=processed, busy=busy) == expected, reason


@pytest.mark.parametrize(
    ("changes", "expected", "reason"),
    [
        (0, math.inf, "one replica cannot carry it"),
        (1, 5.0, "one for an hour, then two"),
        (2, 4.0, "and one again"),
        (9, 4.0, "more changes are of no use"),
    ],
)
def test_an_oracle_pays_what_the_load_needs(changes: int, expected: float, reason: str) -> None:
    """An hour of half a replica, one of a replica and a half, and half a one again."""
    shape = Shape("", 3 * 3600.0, lambda t: 30_000.0 if 3600 <= t < 7200 else 10_000.0)
    assert fewest_hours(shape, changes) == expected, reason


@functools.cache
def own(name: str) -> Result:
    return run(SHAPES[name], Tidemill())


@functools.cache
def compared(name: str) -> Comparison:
    return compare(SHAPES[name])


def changes(result: Result) -> list[tuple[float, int, int]]:
    trace = result.trace
    return [(b.at, a.replicas, b.replicas) for a, b in pairwise(trace) if a.replicas != b.replicas]


def test_a_run_repeats() -> None:
    """Seeded, so that a figure can be looked at again."""
    assert run(SHAPES["noisy hours"], Tidemill()) == own("noisy hours")


def test_ten_times_the_load_is_followed() -> None:
    """Replicas within two minutes, lag allowed again within the catch-up time, at most three rebalances."""
    result = own("tenfold step")
    at, end = 600.0, 4200.0
    ups = [(time, new) for time, old, new in changes(result) if new > old]
    assert ups
    assert ups[-1][0] - at <= 120.0
    assert ups[-1][1] * Setup().capacity >= 30_000
    assert result.recover_seconds <= CATCH_UP_SECONDS
    assert all(point.lag <= ALLOWED_LAG for point in result.trace if at + CATCH_UP_SECONDS <= point.at < end)
    assert result.rebalances <= 3


def test_ten_times_a_larger_load_is_followed() -> None:
    """From two fifths of one replica's work to four: as fast, with all rebalances up and down no more than five."""
    result = own("large tenfold step")
    (first, *_), at = changes(result), 600.0
    enough = next(time for time, _, new in changes(result) if new * Setup().capacity >= 80_000)
    assert first[0] - at <= POLL_SECONDS
    assert enough - at <= 120.0
    assert result.recover_seconds <= CATCH_UP_SECONDS
    assert result.rebalances <= 5


def test_load_that_is_gone_takes_replicas_down_once() -> None:
    """After the stabilisation."""
    downs = [(time, new) for time, old, new in changes(own("tenfold step")) if new < old]
    assert [new for _, new in downs] == [1]
    assert STABILIZATION_SECONDS <= downs[0][0] - 4200.0 <= STABILIZATION_SECONDS + 180.0


@pytest.mark.parametrize("name", SHAPES)
def test_nothing_flaps(name: str) -> None:
    """No change is taken back within ten minutes."""
    assert own(name).flaps == 0


def test_noise_moves_little() -> None:
    """Two and a half hours of it, a quarter up and down: a change each three quarters of an hour at the most."""
    assert own("noisy hours").changes <= 3


def test_a_stuck_partition_brings_no_replicas() -> None:
    """Its lag grows to millions, and none would help it; when it goes again, what waited is worked off."""
    result = own("stuck partition")
    stuck = [point.replicas for point in result.trace if 1800 <= point.at < 4500]
    assert max(stuck) <= 3


def test_a_saturated_database_gets_no_more_to_do() -> None:
    """While it limits all, nobody is added."""
    limited = [point for point in own("slow database").trace if 1830 <= point.at < 3600]
    assert {point.replicas for point in limited} == {limited[0].replicas}
    assert "DatabaseSaturated" in {point.reason for point in limited}


def test_missing_figures_change_nothing() -> None:
    """Neither while load comes nor after it went."""
    shape, trace = SHAPES["missing figures"], own("missing figures").trace
    for before, point in pairwise(trace):
        if shape.missing(point.at):
            assert point.replicas == before.replicas


# Where one of 43 settings, chosen with the load known, serves as well for less: replica-hours in excess, and changes.
SPARED: dict[tuple[str, str], tuple[float, int]] = {
    ("ramp", "flink"): (0.08, 0),
    ("sine", "flink"): (0.17, 0),
    ("skewed keys", "keda"): (0.04, 0),
    ("noisy hours", "flink"): (0.24, 0),
}


@pytest.mark.comparison
@pytest.mark.parametrize("name", SHAPES)
def test_nobody_serves_as_well_for_less(name: str) -> None:
    """KEDA's and Flink's formulas, tuned to each shape; 2 % of replica-hours count as equal."""
    comparison = compared(name)
    for rival in comparison.rivals:
        if rival.result is not None:
            more, further = SPARED.get((name, rival.family), (0.02, 0))
            assert comparison.own.replica_hours <= rival.result.replica_hours * (1 + more), rival.result.policy
            assert comparison.own.changes <= rival.result.changes + further, rival.result.policy
            assert rival.answer is not None or not is_better(rival.result, comparison.own), "tuned to the shape too"


@pytest.mark.comparison
def test_over_all_shapes_nobody_serves_as_well_for_less() -> None:
    """With one setting for all, as Tidemill has, they take a fifth more replica-hours and a third more changes.

    Who changes less pays for it with twice as many replica-hours.
    """
    own, as_good = totals([compared(name) for name in SHAPES])
    cheapest, *_ = as_good
    assert own.replica_hours * 1.2 <= cheapest.replica_hours
    assert own.changes * 1.3 <= cheapest.changes
    calmer = [total for total in as_good if total.changes < own.changes]
    assert all(total.replica_hours >= 2 * own.replica_hours for total in calmer)


@pytest.mark.parametrize("name", SHAPES)
def test_the_formulas_as_delivered_change_more_or_serve_worse(name: str) -> None:
    """KEDA's at the same threshold is never both as good and as calm; nor is Flink's with its defaults."""
    result = own(name)
    for other in (run(SHAPES[name], Keda()), run(SHAPES[name], Flink())):
        assert other.over_seconds > result.over_seconds or other.changes > result.changes


def test_recordings_become_shapes(tmp_path: Path) -> None:
    """Values five minutes apart, straight lines between them, the highest as high as asked for."""
    folder = tmp_path / "data" / "realTraffic"
    folder.mkdir(parents=True)
    (folder / "a.csv").write_text(
        "timestamp,value\n2015-01-01 00:00:00,0\n2015-01-01 00:05:00,5\n2015-01-01 00:10:00,10\n"
    )
    (folder / "empty.csv").write_text("timestamp,value\n")
    (shape,) = recorded(tmp_path, peak=100.0)
    assert (shape.name, shape.seconds) == ("NAB a", 600.0)
    assert [shape.rate(t) for t in (0.0, 150.0, 300.0, 600.0)] == [0.0, 25.0, 50.0, 100.0]
    (later,) = recorded(tmp_path, peak=100.0, skip=5 / 60)
    assert [later.rate(t) for t in (0.0, 300.0)] == [50.0, 100.0]


def test_a_simulation_writes_json_with_its_settings_and_an_svg_picture(tmp_path: Path) -> None:
    """JSON with all settings, and a picture that is XML."""
    short = Shape("a short one", 600.0, lambda _: 30_000.0)
    comparison = compare(short)
    record = json.loads(to_json([comparison], seed=1))
    assert record["shapes"][0]["tidemill"] == comparison.own.summary()
    assert len(record["shapes"][0]["others"]) == len(comparison.others) == 43
    paths = write([comparison], tmp_path, seed=1)
    assert [path.name for path in paths] == ["sim-scaling.json", "a-short-one.svg"]
    drawn = minidom.parseString(paths[1].read_text()).documentElement  # noqa: S318 - written by ourselves
    assert drawn is not None
    assert (drawn.tagName, len(drawn.getElementsByTagName("polyline"))) == ("svg", 9)
