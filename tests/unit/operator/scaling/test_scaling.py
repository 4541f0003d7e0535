"""Decisions about replicas: a table of situations, each with its reason, and sequences of polls."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from tidemill_contract.resource.spec import ScalingSpec
from tidemill_operator.scaling import (
    Decision,
    Figures,
    PartitionFigures,
    ScalingReason,
    Settings,
    State,
    decide,
    explain,
)
from tidemill_operator.scaling.explain import MAX_MESSAGE, scaling_status
from tidemill_operator.scaling.model import Need
from tidemill_operator.scaling.need import aligned, fits, shares
from tidemill_operator.scaling.state import MAX_DECISIONS
from tidemill_processor.source.consumer import CONSUMER_TUNING

NOW = 1_000_000.0
WATCHED = State(polled_at=NOW - 15, watched_since=NOW - 3600)


def figures(*lags: int, ready: int = 1, **more: object) -> Figures:
    """Partitions with these lags, of which a million each were consumed."""
    parts = {p: PartitionFigures(0, 1_000_000 + lag, 1_000_000, 1_000_000) for p, lag in enumerate(lags)}
    return Figures(parts, ready, **more)  # type: ignore[arg-type]


def known() -> State:
    """A pipeline whose replicas are known to do 1,000 events/s."""
    return State(rate_per_replica=1000.0)


def one(settings: Settings, seen: Figures | None, *, current: int, state: State = WATCHED) -> Decision:
    decision, _ = decide(settings, state, seen, current=current, now=NOW)
    return decision


@dataclass(frozen=True)
class Case:
    reason: str
    seen: Figures | None
    current: int
    expected: tuple[int, ScalingReason, str]
    settings: Settings = field(default_factory=Settings)
    state: State = WATCHED


K = 100_000
EVEN = figures(*[60_000] * 6, ready=2)  # 360,000: asks for 4 replicas, of which 6 partitions make 6
CUT = (ScalingReason.STEP_LIMITED, "maxStepUp")
CASES = [
    Case("no lag", figures(0, 0, 0), 1, (1, ScalingReason.WITHIN_TARGET, "")),
    Case("lag that one carries", figures(30_000, 30_000, 30_000), 1, (1, ScalingReason.WITHIN_TARGET, "")),
    Case("lag of three", figures(*[60_000] * 4), 1, (2, ScalingReason.SCALED_UP, ""), Settings(lag_threshold=120_000)),
    Case("three of four partitions are as slow as two", figures(*[60_000] * 4), 1, (4, ScalingReason.SCALED_UP, "")),
    Case(
        "a partition counts for one replica",
        figures(10 * K, 0, 0, 0),
        1,
        (1, ScalingReason.LIMITED_BY_PARTITIONS, "partitions"),
    ),
    Case(
        "two hot partitions count for two", figures(10 * K, 0, 0, 10 * K), 1, (2, ScalingReason.SCALED_UP, "partitions")
    ),
    Case("a step is cut, to what is of use: 5 are as slow as 4", figures(*[K] * 12), 1, (6, *CUT)),
    Case("the more there are, the longer the step", figures(*[K] * 24), 7, (24, ScalingReason.SCALED_UP, "")),
    Case("as many again", figures(*[K] * 32), 8, (16, *CUT)),
    Case("a step that is asked for is kept", figures(*[K] * 12), 1, (5, *CUT), Settings(max_step_up=4)),
    Case("a step of one", EVEN, 2, (3, ScalingReason.STEP_LIMITED, "maxStepUp"), Settings(max_step_up=1)),
    Case("maxReplicas", EVEN, 2, (2, ScalingReason.AT_MAXIMUM, "maxReplicas"), Settings(max_replicas=2)),
    Case("up to maxReplicas", EVEN, 2, (3, ScalingReason.SCALED_UP, "maxReplicas"), Settings(max_replicas=3)),
    Case("partitions", figures(K, K, ready=2), 2, (2, ScalingReason.WITHIN_TARGET, "")),
    Case("more than partitions", figures(K, K + 1, ready=2), 2, (2, ScalingReason.LIMITED_BY_PARTITIONS, "partitions")),
    Case(
        "minReplicas",
        figures(0, 0, 0, ready=2),
        2,
        (2, ScalingReason.AT_MINIMUM, "minReplicas"),
        Settings(min_replicas=2),
    ),
    Case(
        "below new minimum", figures(0, 0, 0), 1, (2, ScalingReason.SCALED_UP, "minReplicas"), Settings(min_replicas=2)
    ),
    Case("above new maximum", EVEN, 5, (3, ScalingReason.SCALED_DOWN, "maxReplicas"), Settings(max_replicas=3)),
    Case("above partitions", figures(0, 0), 5, (2, ScalingReason.SCALED_DOWN, "partitions")),
    Case(
        "too early for more", EVEN, 2, (2, ScalingReason.COOLDOWN, "scaleUpCooldown"), state=State(changed_at=NOW - 89)
    ),
    Case("late enough for more", EVEN, 2, (6, ScalingReason.SCALED_UP, ""), state=State(changed_at=NOW - 90)),
    Case("fewer, long enough", figures(*[0] * 6, ready=2), 2, (1, ScalingReason.SCALED_DOWN, "")),
    Case(
        "fewer, cut",
        figures(*[0] * 6, ready=6),
        6,
        (5, ScalingReason.STEP_LIMITED, "maxStepDown"),
        Settings(max_step_down=1),
    ),
    Case(
        "fewer, not watched long enough",
        figures(*[0] * 6, ready=2),
        2,
        (2, ScalingReason.STABILIZING, "scaleDownStabilization"),
        state=replace(WATCHED, watched_since=NOW - 599),
    ),
    Case(
        "fewer now, more lately",
        figures(*[0] * 6, ready=3),
        3,
        (2, ScalingReason.SCALED_DOWN, ""),
        state=replace(WATCHED, wanted=((NOW - 590, 2),)),
    ),
    Case(
        "as many lately",
        figures(*[0] * 6, ready=3),
        3,
        (3, ScalingReason.STABILIZING, "scaleDownStabilization"),
        state=replace(WATCHED, wanted=((NOW - 590, 3),)),
    ),
    Case(
        "as many, but too long ago",
        figures(*[0] * 6, ready=4),
        4,
        (1, ScalingReason.SCALED_DOWN, ""),
        state=replace(WATCHED, wanted=((NOW - 600, 4),)),
    ),
    Case(
        "one of the three that could go waits three times as long as all three",
        figures(*[0] * 6, ready=4),
        4,
        (4, ScalingReason.STABILIZING, "scaleDownStabilization"),
        state=replace(WATCHED, wanted=((NOW - 1799, 4), (NOW - 1, 3))),
    ),
    Case(
        "one of four, long enough",
        figures(*[0] * 6, ready=4),
        4,
        (3, ScalingReason.SCALED_DOWN, ""),
        state=replace(WATCHED, wanted=((NOW - 1800, 4), (NOW - 1, 3))),
    ),
    Case("rebalancing", replace(EVEN, rebalancing=True), 2, (2, ScalingReason.REBALANCING, "rebalance")),
    Case("rollout", replace(EVEN, rolling_out=True), 2, (2, ScalingReason.ROLLOUT_IN_PROGRESS, "rollout")),
    Case("saturated", replace(EVEN, database_saturated=True), 2, (2, ScalingReason.DATABASE_SATURATED, "database")),
    Case(
        "fewer may wait less",
        figures(*[0] * 6, ready=2, database_saturated=True),
        2,
        (1, ScalingReason.SCALED_DOWN, ""),
    ),
    Case(
        "fewer while rebalancing",
        figures(*[0] * 6, ready=2, rebalancing=True),
        2,
        (2, ScalingReason.REBALANCING, "rebalance"),
    ),
    Case("no figures", None, 2, (2, ScalingReason.FIGURES_MISSING, "")),
    Case("no figures, new maximum", None, 4, (3, ScalingReason.FIGURES_MISSING, ""), Settings(max_replicas=3)),
    Case("no partitions are no figures", Figures({}, 2), 2, (2, ScalingReason.FIGURES_MISSING, "")),
    Case("dry run", EVEN, 2, (6, ScalingReason.DRY_RUN, "dryRun"), Settings(dry_run=True)),
    Case("dry run, nothing to do", figures(0), 1, (1, ScalingReason.WITHIN_TARGET, ""), Settings(dry_run=True)),
    Case(
        "a stage that waits gets no more",
        figures(*[K] * 6, waits=True, rolling_out=True),
        2,
        (2, ScalingReason.STAGE_WAITS, "stage"),
    ),
    Case("a stage that waits with enough", figures(0, waits=True), 1, (1, ScalingReason.WITHIN_TARGET, "")),
    Case("external", EVEN, 2, (2, ScalingReason.EXTERNAL, ""), Settings(mode="external")),
    Case(
        "silence",
        figures(0, 0),
        2,
        (0, ScalingReason.SCALED_TO_ZERO, ""),
        Settings(scale_to_zero_after_seconds=60.0),
        replace(WATCHED, idle_since=NOW - 60),
    ),
    Case(
        "short silence",
        figures(0, 0),
        1,
        (1, ScalingReason.WITHIN_TARGET, ""),
        Settings(scale_to_zero_after_seconds=60.0),
        replace(WATCHED, idle_since=NOW - 59),
    ),
    Case(
        "silence of Kafka's, not of the events'",
        figures(0, 5),
        1,
        (1, ScalingReason.WITHIN_TARGET, ""),
        Settings(scale_to_zero_after_seconds=60.0),
        replace(WATCHED, idle_since=NOW - 60),
    ),
    Case(
        "asleep",
        figures(0, 0, ready=0),
        0,
        (0, ScalingReason.SCALED_TO_ZERO, ""),
        Settings(scale_to_zero_after_seconds=60.0),
    ),
    Case(
        "woken",
        figures(0, 1, ready=0),
        0,
        (1, ScalingReason.WOKEN_BY_ARRIVAL, ""),
        Settings(scale_to_zero_after_seconds=60.0),
        State(changed_at=NOW - 1),
    ),
    Case(
        "woken to the minimum",
        figures(0, 1, ready=0),
        0,
        (2, ScalingReason.WOKEN_BY_ARRIVAL, ""),
        Settings(min_replicas=2, scale_to_zero_after_seconds=60.0),
    ),
    Case("zero without being asked for", figures(0, 0, ready=0), 0, (1, ScalingReason.SCALED_UP, "minReplicas")),
    Case(
        "freshness, speed known: 3 · 20,000 events are 60 s of one replica of 1,000 events/s",
        figures(20_000, 20_000, 20_000),
        1,
        (3, ScalingReason.SCALED_UP, ""),
        Settings(freshness_seconds=20.0, catch_up_seconds=1e9),
        replace(WATCHED, rate_per_replica=1000.0),
    ),
    Case(
        "freshness, speed unknown: one more",
        figures(*[20_000] * 4, freshness_seconds=21.0),
        1,
        (2, ScalingReason.SCALED_UP, ""),
        Settings(freshness_seconds=20.0),
    ),
    Case(
        "freshness reached",
        figures(20_000, 20_000, 20_000, freshness_seconds=19.0),
        1,
        (1, ScalingReason.WITHIN_TARGET, ""),
        Settings(freshness_seconds=20.0),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.reason)
def test_one_poll_decides_from_the_figures_and_what_is_remembered(case: Case) -> None:
    """One poll on top of what is remembered."""
    decision = one(case.settings, case.seen, current=case.current, state=case.state)
    assert (decision.desired, decision.reason, decision.limited_by) == case.expected, explain(decision)
    assert decision.replicas == (case.current if case.settings.dry_run else decision.desired)


def test_a_partition_without_a_position_lags_from_its_start() -> None:
    """What Kafka still has is to be read; what it has thrown away is not."""
    assert PartitionFigures(400, 1000, None, 0).lag == 600
    assert PartitionFigures(400, 1000, 100, 0).lag == 600
    assert PartitionFigures(400, 1000, 900, 0).lag == 100
    assert PartitionFigures(400, 1000, 1001, 0).lag == 0


@dataclass
class Stream:
    """Polls of a pipeline whose replicas do so many events a second, shared out over even partitions."""

    settings: Settings = field(default_factory=Settings)
    partitions: int = 4
    speed: float = 1000.0
    current: int = 1
    now: float = NOW
    state: State = field(default_factory=State)
    ends: list[float] = field(default_factory=list)
    consumed: list[float] = field(default_factory=list)

    def poll(
        self, rate: float = 0.0, *, seconds: float = 15.0, missing: bool = False, still: tuple[int, ...] = ()
    ) -> Decision:
        """Let time pass, then decide."""
        self.ends = self.ends or [0.0] * self.partitions
        self.consumed = self.consumed or [0.0] * self.partitions
        for block in shares(range(self.partitions), max(1, self.current)):
            share = self.speed * seconds / len(block) if self.current else 0.0
            for p in block:
                self.ends[p] += rate * seconds / self.partitions
                self.consumed[p] += 0.0 if p in still else min(self.ends[p] - self.consumed[p], share)
        self.now += seconds
        parts = {
            p: PartitionFigures(0, int(self.ends[p]), int(self.consumed[p]), int(self.consumed[p]))
            for p in range(self.partitions)
        }
        seen = None if missing else Figures(parts, self.current)
        decision, self.state = decide(self.settings, self.state, seen, current=self.current, now=self.now)
        self.current = decision.replicas
        return decision

    def polls(self, number: int, rate: float = 0.0) -> list[Decision]:
        return [self.poll(rate) for _ in range(number)]


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


@pytest.mark.parametrize(
    ("need", "expected", "reason"),
    [
        (1, 1, "even"),
        (2, 2, "even"),
        (4, 4, "even"),
        (5, 6, "5 of 12 are as slow as 4, too slow for it; 6 are not"),
        (7, 12, "the next that has a smaller bottleneck"),
        (12, 12, "one each"),
    ],
)
def test_alignment_of_even_lag(need: int, expected: int, reason: str) -> None:
    """Twelve partitions, lag spread evenly."""
    wanted = Need(need, need, by_lag=(need / 12,) * 12)
    assert aligned(wanted, floor=1, ceiling=12, partitions=12) == expected, reason


def test_alignment_uses_the_band() -> None:
    """6.5 replicas' worth at 70 % are carried by 6 at 76 %, so a twelfth is not needed."""
    wanted = Need(7, 7, by_rate=(6.5 / 12,) * 12)
    assert aligned(wanted, floor=1, ceiling=12, partitions=12) == 6
    assert aligned(replace(wanted, by_rate=(7.4 / 12,) * 12), floor=1, ceiling=12, partitions=12) == 12
    assert aligned(replace(wanted, by_rate=(7.4 / 12,) * 12), floor=1, ceiling=9, partitions=12) == 7


def test_alignment_of_uneven_load() -> None:
    """A hot partition is given fewer neighbours, but not for more than twice what is needed in all."""
    hot = Need(3, 3, by_rate=(1.0, *(0.16,) * 11))
    assert not fits(hot, 4)
    assert aligned(hot, floor=1, ceiling=12, partitions=12) == 6
    assert aligned(replace(hot, by_rate=(1.0, *(0.3,) * 11)), floor=1, ceiling=12, partitions=12) == 3


def test_shares_are_kafkas_ranges() -> None:
    """The first ones get one more."""
    assert shares(range(7), 3) == [range(3), range(3, 5), range(5, 7)]
    assert shares(range(2), 3) == [range(1), range(1, 2)]


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


def test_the_explanation_says_why_and_what_would_change_it() -> None:
    """For people."""
    decision = one(Settings(), figures(*[K] * 12), current=1)
    assert explain(decision).splitlines() == [
        "1 → 6 replicas: StepLimited, limited by maxStepUp",
        "lag 1,200,000 events, 0 events/s arrive, no replica was busy yet, so the speed of a replica is unknown",
        "for the lag, 100,000 events each: 12.0 replicas",
        "for arrivals and catching up within 5m, at 70% use: 0.0 replicas",
        "needed 12, allowed 1 to 12 with 12 partitions, now 12",
        "The rest of the change follows after the cooldown; a larger maxStepUp allows larger steps.",
    ]


@pytest.mark.parametrize("reason", ScalingReason)
def test_every_reason_is_explained(reason: ScalingReason) -> None:
    """And fits into the status."""
    decision = Decision(NOW, 1, 2, 2, reason)
    assert explain(decision).startswith(f"1 → 2 replicas: {reason}")
    assert len(scaling_status(Settings(), decision, State())["message"]) <= MAX_MESSAGE


def test_status_scaling_is_rounded_so_that_it_rarely_changes() -> None:
    """Rounded, so that it changes only with something."""
    stream = Stream(Settings(max_replicas=1))
    decision = stream.polls(8, rate=2123.0)[-1]
    status = scaling_status(stream.settings, decision, replace(stream.state, changed_at=0.0))
    message = status.pop("message")
    assert message.startswith("1 replica: AtMaximum, limited by maxReplicas")
    assert status == {
        "mode": "lag",
        "current": 1,
        "desired": 1,
        "need": 4,
        "reason": "AtMaximum",
        "limitedBy": "maxReplicas",
        "lag": 130000,
        "rate": 2100,
        "ratePerReplica": 1000,
        "lastScaleTime": "1970-01-01T00:00:00Z",
    }


def test_settings_are_the_specs() -> None:
    """The defaults of both are the same."""
    assert Settings.of(ScalingSpec(), "500ms") == Settings()
    written = {"target": {"freshness": "10s"}, "scaleToZeroAfter": "1h", "pollInterval": "5s"}
    told = Settings.of(ScalingSpec.model_validate(written), "1s")
    expected = Settings(freshness_seconds=10.0, scale_to_zero_after_seconds=3600.0, poll_seconds=5.0, flush_seconds=1.0)
    assert told == expected


def test_processors_share_partitions_out_as_scaling_reckons() -> None:
    """Blocks of neighbours are the range assignment's; another one would make the speed of a replica wrong."""
    assert CONSUMER_TUNING["partition.assignment.strategy"] == "range"
