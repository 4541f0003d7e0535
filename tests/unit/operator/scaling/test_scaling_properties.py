"""Properties of decisions about replicas for drawn streams of figures: bounds, steps, determinism and restarts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tidemill_operator.scaling import Decision, PartitionFigures, ScalingFigures, ScalingReason, Settings, State, decide
from tidemill_operator.scaling.state import MAX_DECISIONS, MAX_SAMPLES

# A stream has many figures. More examples take long and find little.
some = hypothesis_settings(max_examples=60, deadline=None)


@dataclass(frozen=True)
class Poll:
    """The time and the events before a poll, and the facts that the poll sees."""

    seconds: float
    arrive: tuple[int, ...]
    consume: tuple[int, ...]
    missing: bool
    blocked_by: tuple[bool, bool, bool]


@st.composite
def some_settings(draw: st.DrawFn) -> Settings:
    low = draw(st.integers(0, 6))
    return Settings(
        min_replicas=low,
        max_replicas=draw(st.none() | st.integers(max(low, 1), 12)),
        lag_threshold=draw(st.integers(1, 100_000)),
        freshness_seconds=draw(st.none() | st.floats(1, 600)),
        catch_up_seconds=draw(st.floats(10, 3600)),
        target_utilisation=draw(st.floats(0.3, 0.8)),
        scale_up_cooldown_seconds=draw(st.sampled_from([0.0, 30.0, 90.0])),
        scale_down_stabilization_seconds=draw(st.sampled_from([0.0, 60.0, 600.0])),
        max_step_up=draw(st.none() | st.integers(1, 5)),
        max_step_down=draw(st.none() | st.integers(1, 5)),
        scale_to_zero_after_seconds=draw(st.none() | st.sampled_from([10.0, 60.0])),
    )


@st.composite
def some_polls(draw: st.DrawFn, partitions: int) -> list[Poll]:
    counts = st.tuples(*[st.sampled_from([0, 0, 10, 5_000, 200_000])] * partitions)
    poll = st.builds(
        Poll,
        seconds=st.sampled_from([15.0, 15.0, 16.5, 60.0, 1000.0, 0.0]),
        arrive=counts,
        consume=counts,
        missing=st.booleans() if draw(st.booleans()) else st.just(False),
        blocked_by=st.tuples(*[st.booleans()] * 3) if draw(st.booleans()) else st.just((False, False, False)),
    )
    return draw(st.lists(poll, min_size=1, max_size=25))


@st.composite
def streams(draw: st.DrawFn) -> tuple[Settings, int, int, list[Poll]]:
    partitions = draw(st.integers(1, 9))
    current = draw(st.integers(0, 12))
    return draw(some_settings()), partitions, current, draw(some_polls(partitions))


def play(
    settings: Settings, partitions: int, current: int, polls: list[Poll], *, rewritten: bool = False
) -> list[tuple[Decision, State]]:
    """Return all decisions, each with the state after it."""
    ends, consumed, now, state = [0] * partitions, [0] * partitions, 1e9, State()
    result = []
    for poll in polls:
        now += poll.seconds
        for p in range(partitions):
            ends[p] += poll.arrive[p]
            consumed[p] = min(ends[p], consumed[p] + poll.consume[p])
        parts = {p: PartitionFigures(0, ends[p], consumed[p] or None, consumed[p]) for p in range(partitions)}
        rebalancing, rolling, saturated = poll.blocked_by
        seen = ScalingFigures(
            parts, current, rebalancing=rebalancing, rolling_out=rolling, database_saturated=saturated
        )
        state = State.from_json(state.to_json()) if rewritten else state
        decision, state = decide(settings, state, None if poll.missing else seen, current=current, now=now)
        result.append((decision, state))
        current = decision.replicas
    return result


@some
@given(streams())
def test_a_decision_is_within_bounds_and_at_most_the_number_of_partitions(
    stream: tuple[Settings, int, int, list[Poll]],
) -> None:
    """Without figures the number of partitions is unknown, and only maxReplicas bounds the decision."""
    settings, partitions, current, polls = stream
    ceiling = settings.ceiling(partitions)
    for decision, _ in play(settings, partitions, current, polls):
        if decision.reason == ScalingReason.FIGURES_MISSING:
            assert decision.desired == min(decision.current, settings.max_replicas or decision.current)
        elif decision.desired:
            assert min(settings.floor, ceiling) <= decision.desired <= ceiling
        elif decision.current:
            assert settings.scale_to_zero_after_seconds is not None


@some
@given(streams())
def test_steps_are_kept_within_bounds(stream: tuple[Settings, int, int, list[Poll]]) -> None:
    """A larger step is allowed only from a number out of bounds, and to zero."""
    settings, partitions, current, polls = stream
    ceiling = settings.ceiling(partitions)
    for decision, _ in play(settings, partitions, current, polls):
        within = min(settings.floor, ceiling) <= decision.current <= ceiling
        if within and decision.desired > 0:
            step = decision.desired - decision.current
            assert step >= -(settings.max_step_down or partitions)
            assert step <= (settings.max_step_up or max(partitions, decision.current))
            if settings.max_step_up is None:  # twice as many, at least four more, then aligned
                assert decision.desired <= 2 * max(2 * decision.current, decision.current + 4)


@some
@given(streams())
def test_no_step_up_follows_another_within_the_cooldown(stream: tuple[Settings, int, int, list[Poll]]) -> None:
    settings, partitions, current, polls = stream
    ceiling = settings.ceiling(partitions)
    changed_at: float | None = None
    for decision, _ in play(settings, partitions, current, polls):
        up = decision.desired > decision.current
        if up and changed_at is not None and decision.current >= min(settings.floor, ceiling) > 0:
            assert decision.at - changed_at >= settings.scale_up_cooldown_seconds
        if decision.changes_replicas:
            changed_at = decision.at


@some
@given(streams())
def test_no_step_is_decided_during_a_rebalance_a_rollout_or_a_saturation(
    stream: tuple[Settings, int, int, list[Poll]],
) -> None:
    """During a rebalance or rollout the number is unchanged. While Postgres is saturated, the number does not grow."""
    settings, partitions, current, polls = stream
    ceiling = settings.ceiling(partitions)
    for poll, (decision, _) in zip(polls, play(settings, partitions, current, polls), strict=True):
        rebalancing, rolling, saturated = poll.blocked_by
        if not min(settings.floor, ceiling) <= decision.current <= ceiling:
            continue
        if poll.missing or rebalancing or rolling:
            assert decision.desired == decision.current
        elif saturated:
            assert decision.desired <= decision.current


@some
@given(streams())
def test_equal_polls_give_equal_decisions(stream: tuple[Settings, int, int, list[Poll]]) -> None:
    assert play(*stream) == play(*stream)


@some
@given(streams())
def test_a_restart_changes_no_decision(stream: tuple[Settings, int, int, list[Poll]]) -> None:
    """The state is written as JSON and read again at every poll."""
    assert play(*stream, rewritten=True) == play(*stream)


@some
@given(streams())
def test_a_dry_run_decides_the_same_and_changes_nothing(stream: tuple[Settings, int, int, list[Poll]]) -> None:
    """Only the first decision is compared, because a dry run changes no replicas."""
    settings, partitions, current, polls = stream
    (wet, _), *_ = play(settings, partitions, current, polls[:1])
    for decision, _ in play(replace(settings, dry_run=True), partitions, current, polls):
        assert decision.replicas == decision.current
    (dry, _), *_ = play(replace(settings, dry_run=True), partitions, current, polls[:1])
    assert dry.desired == wet.desired


@some
@given(streams())
def test_the_stored_state_is_bounded(stream: tuple[Settings, int, int, list[Poll]]) -> None:
    settings, partitions, current, polls = stream
    for _, state in play(settings, partitions, current, polls):
        assert len(state.samples) <= MAX_SAMPLES
        assert len(state.decisions) <= MAX_DECISIONS
        assert len(state.wanted) <= partitions
        assert len(state.seen) <= partitions
