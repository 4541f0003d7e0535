"""Decisions about replicas over sequences of polls: speeds, rises, falls, outages, and the stored state."""

from __future__ import annotations

import pytest

from scaled.polls import NOW, Stream, known
from tidemill_operator.scaling import ScalingReason, Settings, State, explain
from tidemill_operator.scaling.state import MAX_DECISIONS


def test_an_idle_replicas_speed_is_not_known() -> None:
    """What comes is done; that says nothing of what could be done, and asks for nobody."""
    stream = Stream()
    last = stream.polls(40, rate=900.0)[-1]
    assert last.load is not None
    assert (last.load.rate_per_replica, last.need, stream.current) == (None, 0 or last.need, 1)
    assert last.reason == ScalingReason.WITHIN_TARGET


def test_the_speed_of_a_busy_replica_is_learnt_and_kept() -> None:
    """From lag at both ends of an interval; afterwards, idle, it is still known."""
    stream = Stream(Settings(max_replicas=1))
    stream.polls(6, rate=2000.0)
    busy = stream.poll(2000.0)
    assert busy.load is not None
    assert busy.load.rate_per_replica == pytest.approx(1000.0, rel=0.01)
    idle = stream.polls(60, rate=100.0)[-1]
    assert idle.load is not None
    assert idle.load.lag == 0
    assert idle.load.rate_per_replica == pytest.approx(1000.0, rel=0.01)


def test_arrivals_ask_for_replicas_before_lag_does() -> None:
    """Once the speed is known: 2,900 events/s over 0.7 · 1,000 are 4.1, which 4 replicas carry at 73 %."""
    stream = Stream(partitions=12, state=known(), current=2)
    decisions = stream.polls(3, rate=2900.0)
    assert (decisions[1].need, stream.current) == (5, 4)
    assert max(d.load.lag for d in decisions if d.load) < 30_000


def test_a_band_keeps_noise_out() -> None:
    """At 80 % use nothing is changed, though the formula asks for one more; at 90 % it is."""
    stream = Stream(partitions=12, state=known(), current=2)
    calm = stream.polls(10, rate=1600.0)[-1]
    assert (calm.need, calm.desired, calm.reason) == (3, 2, ScalingReason.WITHIN_TARGET)
    assert stream.polls(10, rate=1800.0)[-1].desired == 3


def test_a_rise_is_followed_in_one_change() -> None:
    """From 500 to 3,500 events/s in five minutes: up when one replica is full, and at once to what is coming."""
    stream = Stream(partitions=12, state=known())
    stream.polls(10, rate=500.0)
    decisions = [stream.poll(500.0 + 150.0 * number) for number in range(20)]
    ups = [(d.current, d.desired) for d in [*decisions, *stream.polls(20, rate=3500.0)] if d.changes]
    assert ups[0] == (1, 4)
    assert len(ups) <= 2
    risen = next(d for d in decisions if d.changes)
    assert "arrivals rise: 2,400 events/s more in 4m are included" in explain(risen)


def test_a_step_of_arrivals_is_no_rise() -> None:
    """What has jumped is not expected to jump again."""
    stream = Stream(partitions=12, state=known(), current=2)
    stream.polls(10, rate=100.0)
    assert [(d.current, d.desired) for d in stream.polls(20, rate=2700.0) if d.changes] == [(2, 4)]


def test_what_is_wanted_back_soon_is_waited_for_longer() -> None:
    """A burst every twenty minutes: replicas go after the first ones, and stay after that."""
    stream = Stream(partitions=12, state=known())
    changes = []
    for _ in range(8):
        decisions = [*stream.polls(20, rate=2700.0), *stream.polls(60, rate=100.0)]
        changes.append(sum(d.changes for d in decisions))
    assert changes[0] >= 2
    assert changes[-4:] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("rate", "expected", "reason"),
    [
        (3300.0, 6, "four would be used to 82 %: they stay where they are, and are not taken"),
        (2900.0, 4, "four are used to 72 %"),
    ],
)
def test_nobody_goes_who_is_wanted_back_at_once(rate: float, expected: int, reason: str) -> None:
    """Six replicas of twelve partitions, of which four would carry the load, as full as is just allowed or not."""
    stream = Stream(partitions=12, state=known(), current=6)
    stream.polls(120, rate=rate)
    assert stream.current == expected, reason
    stay = Stream(partitions=12, state=known(), current=4)
    stay.polls(120, rate=rate)
    assert stay.current == 4


def test_load_that_goes_takes_replicas_down_once() -> None:
    """After the whole stabilisation, in one step, and not before."""
    stream = Stream(partitions=12, state=known(), current=4)
    stream.polls(45, rate=2700.0)
    decisions = stream.polls(60, rate=100.0)
    changes = [(d.at - decisions[0].at, d.current, d.desired) for d in decisions if d.changes]
    assert [change[1:] for change in changes] == [(4, 1)]
    assert changes[0][0] >= 570.0


@pytest.mark.parametrize(
    ("polls", "expected", "reason"),
    [
        (32, [(4, 1)], "8 minutes between the two: waited for, one change"),
        (100, [(4, 2), (2, 1)], "25 minutes: not waited for longer than another stabilisation"),
    ],
)
def test_load_that_goes_on_falling_is_waited_for(polls: int, expected: list[tuple[int, int]], reason: str) -> None:
    """Load falls from what four replicas do to what two do, and then to one's."""
    stream = Stream(partitions=12, state=known(), current=4)
    stream.polls(45, rate=2700.0)
    decisions = [*stream.polls(polls, rate=1300.0), *stream.polls(100, rate=100.0)]
    assert [(d.current, d.desired) for d in decisions if d.changes] == expected, reason


def test_without_a_known_speed_nobody_is_sent_away_who_is_needed() -> None:
    """Lag brought a second replica before its speed was seen; together they do more than one was ever seen to do."""
    stream = Stream(partitions=2, current=2)
    assert stream.polls(80, rate=1800.0)[-1].desired == 2
    assert stream.polls(80, rate=200.0)[-1].desired == 1


def test_a_standing_partition_brings_nobody() -> None:
    """Its lag grows and grows; more replicas would not help it."""
    stream = Stream(Settings(lag_threshold=1000), state=known(), current=1)
    for _ in range(40):
        decision = stream.poll(600.0, still=(2,))
    assert decision.load is not None
    assert (decision.load.stuck, stream.current) == ((2,), 1)
    assert "partitions 2 make no progress" in explain(decision)


def test_failed_polls_keep_replicas_and_start_the_stabilisation_anew() -> None:
    """What happened meanwhile was not seen, so nobody is sent away for a whole stabilisation after it."""
    stream = Stream(partitions=4, current=4, state=known())
    stream.polls(45, rate=2700.0)
    assert [stream.poll(missing=True).reason for _ in range(3)] == [ScalingReason.FIGURES_MISSING] * 3
    resumed = stream.now
    decisions = stream.polls(60, rate=100.0)
    down = next(d for d in decisions if d.changes)
    assert down.at - resumed >= 600.0


def test_one_failed_poll_changes_nothing() -> None:
    """A glitch is not an outage."""
    stream = Stream(partitions=4, current=2, state=known())
    stream.polls(5, rate=1600.0)
    assert stream.poll(1600.0, missing=True).desired == 2
    assert stream.poll(1600.0).desired == 2
    assert stream.state.watched_since == NOW + 15


def test_silence_scales_to_zero_and_one_event_starts_a_replica() -> None:
    """Silence, then one event."""
    stream = Stream(Settings(scale_to_zero_after_seconds=60.0))
    stream.polls(3, rate=100.0)
    asleep = next(d for d in stream.polls(10) if d.changes)
    assert (asleep.reason, stream.current) == (ScalingReason.SCALED_TO_ZERO, 0)
    woken = stream.poll(10.0)
    assert (woken.reason, woken.desired) == (ScalingReason.WOKEN_BY_ARRIVAL, 1)
    assert stream.poll(10.0).desired == 1


def test_a_topic_made_anew_counts_nothing_backwards() -> None:
    """Offsets and counts that fall are no arrivals, and no speed."""
    stream = Stream(Settings(max_replicas=1))
    stream.polls(8, rate=2000.0)
    stream.ends, stream.consumed = [0.0] * 4, [0.0] * 4
    decision = stream.poll(100.0)
    assert decision.load is not None
    assert decision.load.rate_per_replica == pytest.approx(1000.0, rel=0.01)


def test_decisions_are_remembered_once_each_and_bounded() -> None:
    """Equal ones are not repeated; the oldest go."""
    stream = Stream()
    stream.polls(10, rate=100.0)
    assert [record.reason for record in stream.state.decisions] == [ScalingReason.WITHIN_TARGET]
    for number in range(30):
        stream.settings = Settings(max_replicas=1 + number % 2, min_replicas=1 + number % 2)
        stream.poll(100.0)
    assert len(stream.state.decisions) == MAX_DECISIONS


def test_the_state_is_bounded() -> None:
    """A day of polls is no longer than ten minutes of them."""
    stream = Stream(partitions=4)
    stream.polls(60, rate=900.0)
    short = len(stream.state.to_json())
    stream.polls(2000, rate=900.0)
    assert len(stream.state.to_json()) < short * 1.5


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"seen": 1}', "null"])
def test_a_broken_state_is_an_empty_one(text: str) -> None:
    """It can be learnt anew, so it stops nobody."""
    assert State.from_json(text) == State()
