"""Tests of decisions about replicas over sequences of polls: measured speed, rising and falling load, failed polls."""

from __future__ import annotations

import pytest

from scaled.polls import NOW, Stream, known_speed
from tidemill_operator.scaling import ScalingReason, Settings, State, explain
from tidemill_operator.scaling.state import MAX_DECISIONS


def test_the_speed_of_an_idle_replica_stays_unknown() -> None:
    """A replica without lag processes all arrivals, which does not show its maximum speed."""
    stream = Stream()
    last = stream.polls(40, rate=900.0)[-1]
    assert last.load is not None
    assert (last.load.rate_per_replica, last.need, stream.current) == (None, 0 or last.need, 1)
    assert last.reason == ScalingReason.WITHIN_TARGET


def test_the_speed_of_a_busy_replica_is_measured_and_kept() -> None:
    """The speed is measured while there is lag at both ends of an interval.

    An idle replica keeps the measured speed.
    """
    stream = Stream(Settings(max_replicas=1))
    stream.polls(6, rate=2000.0)
    busy = stream.poll(2000.0)
    assert busy.load is not None
    assert busy.load.rate_per_replica == pytest.approx(1000.0, rel=0.01)
    idle = stream.polls(60, rate=100.0)[-1]
    assert idle.load is not None
    assert idle.load.lag == 0
    assert idle.load.rate_per_replica == pytest.approx(1000.0, rel=0.01)


def test_arrivals_add_replicas_before_lag_grows() -> None:
    """With a known speed, 2,900 events/s at 70 % of 1,000 need 4.1 replicas. 4 replicas carry this load at 73 %."""
    stream = Stream(partitions=12, state=known_speed(), current=2)
    decisions = stream.polls(3, rate=2900.0)
    assert (decisions[1].need, stream.current) == (5, 4)
    assert max(d.load.lag for d in decisions if d.load) < 30_000


def test_small_changes_of_the_load_change_no_replicas() -> None:
    """At 80 % use the number is unchanged, although the formula asks for one more. At 90 % it changes."""
    stream = Stream(partitions=12, state=known_speed(), current=2)
    calm = stream.polls(10, rate=1600.0)[-1]
    assert (calm.need, calm.desired, calm.reason) == (3, 2, ScalingReason.WITHIN_TARGET)
    assert stream.polls(10, rate=1800.0)[-1].desired == 3


def test_a_rise_of_the_load_adds_replicas_in_few_steps() -> None:
    """The load rises from 500 to 3,500 events/s in five minutes. The first step up includes the expected rise."""
    stream = Stream(partitions=12, state=known_speed())
    stream.polls(10, rate=500.0)
    decisions = [stream.poll(500.0 + 150.0 * number) for number in range(20)]
    ups = [(d.current, d.desired) for d in [*decisions, *stream.polls(20, rate=3500.0)] if d.changes_replicas]
    assert ups[0] == (1, 4)
    assert len(ups) <= 2
    risen = next(d for d in decisions if d.changes_replicas)
    assert "arrivals rise: 2,400 events/s more in 4m are included" in explain(risen)


def test_a_jump_of_the_load_is_not_taken_for_a_rise() -> None:
    """After a single jump of the load, no further jump is expected."""
    stream = Stream(partitions=12, state=known_speed(), current=2)
    stream.polls(10, rate=100.0)
    assert [(d.current, d.desired) for d in stream.polls(20, rate=2700.0) if d.changes_replicas] == [(2, 4)]


def test_replicas_that_bursts_need_again_soon_are_kept() -> None:
    """The load has a burst every twenty minutes. After a few bursts, replicas are kept between the bursts."""
    stream = Stream(partitions=12, state=known_speed())
    changes = []
    for _ in range(8):
        decisions = [*stream.polls(20, rate=2700.0), *stream.polls(60, rate=100.0)]
        changes.append(sum(d.changes_replicas for d in decisions))
    assert changes[0] >= 2
    assert changes[-4:] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("rate", "expected", "reason"),
    [
        (3300.0, 6, "four would be used to 82 %, which is above the band for removing replicas"),
        (2900.0, 4, "four are used to 72 %"),
    ],
)
def test_replicas_that_would_be_needed_again_at_once_are_kept(rate: float, expected: int, reason: str) -> None:
    """Six replicas become four only if four carry the load at a use below the band."""
    stream = Stream(partitions=12, state=known_speed(), current=6)
    stream.polls(120, rate=rate)
    assert stream.current == expected, reason
    stay = Stream(partitions=12, state=known_speed(), current=4)
    stay.polls(120, rate=rate)
    assert stay.current == 4


def test_a_fall_of_the_load_removes_replicas_in_one_step() -> None:
    """Replicas are removed in one step, and only after the whole stabilisation."""
    stream = Stream(partitions=12, state=known_speed(), current=4)
    stream.polls(45, rate=2700.0)
    decisions = stream.polls(60, rate=100.0)
    changes = [(d.at - decisions[0].at, d.current, d.desired) for d in decisions if d.changes_replicas]
    assert [change[1:] for change in changes] == [(4, 1)]
    assert changes[0][0] >= 570.0


@pytest.mark.parametrize(
    ("polls", "expected", "reason"),
    [
        (32, [(4, 1)], "8 minutes between the falls make one change"),
        (100, [(4, 2), (2, 1)], "25 minutes between the falls make two changes"),
    ],
)
def test_a_second_fall_soon_after_the_first_is_part_of_one_step(
    polls: int, expected: list[tuple[int, int]], reason: str
) -> None:
    """The load falls in two steps: from four replicas to two, then to one."""
    stream = Stream(partitions=12, state=known_speed(), current=4)
    stream.polls(45, rate=2700.0)
    decisions = [*stream.polls(polls, rate=1300.0), *stream.polls(100, rate=100.0)]
    assert [(d.current, d.desired) for d in decisions if d.changes_replicas] == expected, reason


def test_without_a_known_speed_needed_replicas_are_kept() -> None:
    """Lag added a second replica before the speed was measured. Two replicas do more than the measured speed of one."""
    stream = Stream(partitions=2, current=2)
    assert stream.polls(80, rate=1800.0)[-1].desired == 2
    assert stream.polls(80, rate=200.0)[-1].desired == 1


def test_a_partition_without_progress_adds_no_replicas() -> None:
    """More replicas do not reduce the lag of a partition that makes no progress."""
    stream = Stream(Settings(lag_threshold=1000), state=known_speed(), current=1)
    for _ in range(40):
        decision = stream.poll(600.0, still=(2,))
    assert decision.load is not None
    assert (decision.load.stuck, stream.current) == ((2,), 1)
    assert "partitions 2 make no progress" in explain(decision)


def test_failed_polls_keep_replicas_and_restart_the_stabilisation() -> None:
    """The load during failed polls is unknown, so a whole stabilisation follows before replicas are removed."""
    stream = Stream(partitions=4, current=4, state=known_speed())
    stream.polls(45, rate=2700.0)
    assert [stream.poll(missing=True).reason for _ in range(3)] == [ScalingReason.FIGURES_MISSING] * 3
    resumed = stream.now
    decisions = stream.polls(60, rate=100.0)
    down = next(d for d in decisions if d.changes_replicas)
    assert down.at - resumed >= 600.0


def test_one_failed_poll_changes_nothing() -> None:
    stream = Stream(partitions=4, current=2, state=known_speed())
    stream.polls(5, rate=1600.0)
    assert stream.poll(1600.0, missing=True).desired == 2
    assert stream.poll(1600.0).desired == 2
    assert stream.state.watched_since == NOW + 15


def test_silence_scales_to_zero_and_one_event_starts_a_replica() -> None:
    stream = Stream(Settings(scale_to_zero_after_seconds=60.0))
    stream.polls(3, rate=100.0)
    asleep = next(d for d in stream.polls(10) if d.changes_replicas)
    assert (asleep.reason, stream.current) == (ScalingReason.SCALED_TO_ZERO, 0)
    woken = stream.poll(10.0)
    assert (woken.reason, woken.desired) == (ScalingReason.WOKEN_BY_ARRIVAL, 1)
    assert stream.poll(10.0).desired == 1


def test_a_recreated_topic_changes_no_measured_speed() -> None:
    """Offsets and counts that fall are not arrivals. The measured speed is unchanged."""
    stream = Stream(Settings(max_replicas=1))
    stream.polls(8, rate=2000.0)
    stream.ends, stream.consumed = [0.0] * 4, [0.0] * 4
    decision = stream.poll(100.0)
    assert decision.load is not None
    assert decision.load.rate_per_replica == pytest.approx(1000.0, rel=0.01)


def test_the_stored_decisions_differ_and_are_bounded() -> None:
    """A decision that equals the last one is not stored again. The oldest decisions are removed."""
    stream = Stream()
    stream.polls(10, rate=100.0)
    assert [record.reason for record in stream.state.decisions] == [ScalingReason.WITHIN_TARGET]
    for number in range(30):
        stream.settings = Settings(max_replicas=1 + number % 2, min_replicas=1 + number % 2)
        stream.poll(100.0)
    assert len(stream.state.decisions) == MAX_DECISIONS


def test_the_state_is_bounded() -> None:
    """The state after a day is at most 1.5 times as long as after ten minutes."""
    stream = Stream(partitions=4)
    stream.polls(60, rate=900.0)
    short = len(stream.state.to_json())
    stream.polls(2000, rate=900.0)
    assert len(stream.state.to_json()) < short * 1.5


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"seen": 1}', "null"])
def test_a_broken_state_is_read_as_an_empty_one(text: str) -> None:
    """Everything in the state can be measured again, so a broken state is replaced."""
    assert State.from_json(text) == State()
