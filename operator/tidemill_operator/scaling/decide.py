"""Decide on the number of replicas after a poll."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from tidemill_operator.scaling.explain import EXTERNAL_LINES, Bounds, calculation_lines
from tidemill_operator.scaling.measure import add_poll
from tidemill_operator.scaling.model import Decision, Load, Need, ScalingFigures, ScalingReason, Settings
from tidemill_operator.scaling.need import ROOMY_BAND, compute_need, fits, fitting_replicas, limited_step, rise_seconds
from tidemill_operator.scaling.state import MAX_DECISIONS, Record, State

MAX_PATIENCE = 4


@dataclass(frozen=True)
class _Poll:
    """The inputs of a decision. `target` is the required number of replicas, within the limits."""

    settings: Settings
    state: State
    figures: ScalingFigures
    load: Load
    need: Need
    current: int
    floor: int
    ceiling: int
    target: int
    now: float

    @property
    def partitions(self) -> int:
        return len(self.figures.partitions)

    @property
    def ceiling_name(self) -> str:
        return "maxReplicas" if self.ceiling < self.partitions else "partitions"

    @cached_property
    def removal_plan(self) -> tuple[int, float]:
        """Return the number of replicas to keep, and the seconds to wait before removing the others."""
        waits = [
            _removal_wait(self.settings, self.state, current=self.current, removed=removed)
            for removed in range(self.current - self.target, 0, -1)
        ]
        for kept, seconds in enumerate(waits, start=self.target):
            recent_max = _max_recent_target(self, seconds)
            if recent_max <= kept:
                return recent_max, seconds
        return self.current, next(iter(waits), 0.0)


@dataclass(frozen=True)
class _Choice:
    desired: int
    reason: ScalingReason
    limited_by: str = ""


def decide(
    settings: Settings, state: State, figures: ScalingFigures | None, *, current: int, now: float
) -> tuple[Decision, State]:
    """Decide on the number of replicas, and return the decision and the next state.

    `state` is the state after the last decision. `figures` is None if the figures cannot be read. `now` is in epoch
    seconds.
    """
    if settings.mode == "external":
        return Decision(now, current, current, current, ScalingReason.EXTERNAL, lines=EXTERNAL_LINES), state
    if figures is None or not figures.partitions:
        return _decide_without_figures(settings, state, current=current, now=now)
    state, load = add_poll(settings, state, figures, current=current, now=now)
    partitions = len(figures.partitions)
    ceiling = settings.ceiling(partitions)
    floor = min(settings.floor, ceiling)
    need = compute_need(settings, load, current=current)
    target = fitting_replicas(need, floor=floor, ceiling=ceiling, partitions=partitions)
    if target > current >= floor and fits(need, current):
        target = current
    elif target > current:
        # If the load rises, add enough replicas for the load that is expected soon.
        expected_need = compute_need(settings, load.extrapolated(rise_seconds(settings)), current=current)
        target = max(target, fitting_replicas(expected_need, floor=floor, ceiling=ceiling, partitions=partitions))
    elif target < current:
        # Remove fewer replicas than possible, so that small rises of the load do not add replicas again.
        roomy = fitting_replicas(need, floor=floor, ceiling=ceiling, partitions=partitions, band=ROOMY_BAND)
        target = max(target, min(roomy, current))
    state = _record_target(settings, state, target, current=current, now=now)
    poll = _Poll(settings, state, figures, load, need, current, floor, ceiling, target, now)
    return _finish(poll, _choose(poll))


def _decide_without_figures(settings: Settings, state: State, *, current: int, now: float) -> tuple[Decision, State]:
    """Decide without figures: keep the number of replicas, but at most maxReplicas."""
    failed = state.failed_polls + 1
    state = replace(state, failed_polls=failed)
    desired = min(current, settings.max_replicas or current)
    decision = Decision(
        now,
        current,
        desired,
        current if settings.dry_run else desired,
        ScalingReason.FIGURES_MISSING,
        lines=(f"figures could not be read {failed} times in a row; the number of replicas does not change",),
    )
    return decision, _record_decision(state, decision)


def _record_target(settings: Settings, state: State, target: int, *, current: int, now: float) -> State:
    longest = _removal_wait(settings, state, current=current, removed=1)
    oldest = now - longest - settings.scale_down_stabilization_seconds
    higher_targets = tuple((at, replicas) for at, replicas in state.wanted if at > oldest and replicas > target)
    return replace(state, wanted=(*higher_targets, (now, target)))


def _max_recent_target(poll: _Poll, seconds: float) -> int:
    return next((replicas for at, replicas in poll.state.wanted if at > poll.now - seconds), poll.target)


def _choose(poll: _Poll) -> _Choice:
    if poll.current == 0:
        return _from_zero(poll)
    if poll.current > poll.ceiling:
        return _Choice(poll.ceiling, ScalingReason.SCALED_DOWN, poll.ceiling_name)
    if poll.current < poll.floor:
        return _Choice(poll.floor, ScalingReason.SCALED_UP, "minReplicas")
    if _is_idle(poll):
        return _hold_for_rollout(poll) or _Choice(0, ScalingReason.SCALED_TO_ZERO)
    if poll.target > poll.current:
        return _scale_up(poll)
    if poll.target < poll.current:
        return _scale_down(poll)
    return _keep_replicas(poll)


def _from_zero(poll: _Poll) -> _Choice:
    if poll.load.lag > 0:
        return _Choice(poll.floor, ScalingReason.WOKEN_BY_ARRIVAL)
    if poll.settings.scale_to_zero_after_seconds is None:
        return _Choice(poll.floor, ScalingReason.SCALED_UP, "minReplicas")
    return _Choice(0, ScalingReason.SCALED_TO_ZERO)


def _is_idle(poll: _Poll) -> bool:
    after, since = poll.settings.scale_to_zero_after_seconds, poll.state.idle_since
    return after is not None and since is not None and poll.now - since >= after


def _scale_up(poll: _Poll) -> _Choice:
    settings, changed = poll.settings, poll.state.changed_at
    if poll.figures.stage_waits:  # more replicas do not help a Python stage that waits for a user's correction
        return _Choice(poll.current, ScalingReason.STAGE_WAITS, "stage")
    hold = _hold_for_rollout(poll)
    if hold is None and poll.figures.database_saturated:
        hold = _Choice(poll.current, ScalingReason.DATABASE_SATURATED, "database")
    if hold is not None:
        return hold
    if changed is not None and poll.now - changed < settings.scale_up_cooldown_seconds:
        return _Choice(poll.current, ScalingReason.COOLDOWN, "scaleUpCooldown")
    desired = _step(poll, poll.target)
    if desired < poll.target:
        return _Choice(desired, ScalingReason.STEP_LIMITED, "maxStepUp")
    return _Choice(desired, ScalingReason.SCALED_UP, _limit_name(poll))


def _scale_down(poll: _Poll) -> _Choice:
    since = poll.state.watched_since
    to_keep, seconds = poll.removal_plan
    observed_long_enough = since is not None and poll.now - since >= seconds
    if (
        to_keep >= poll.current
        or not observed_long_enough
        or not _is_settled(poll)
        or _still_falling(poll, to_keep, seconds)
    ):
        return _Choice(poll.current, ScalingReason.STABILIZING, "scaleDownStabilization")
    hold = _hold_for_rollout(poll)
    if hold is not None:
        return hold
    desired = _step(poll, to_keep)
    if desired > to_keep:
        return _Choice(desired, ScalingReason.STEP_LIMITED, "maxStepDown")
    return _Choice(
        desired, ScalingReason.SCALED_DOWN, "minReplicas" if max(1, poll.need.useful) < to_keep == poll.floor else ""
    )


def _still_falling(poll: _Poll, to_keep: int, wait: float) -> bool:
    """Return True if the load still falls.

    The caller then waits, so that one later removal replaces two removals.
    """
    period = poll.settings.scale_down_stabilization_seconds
    return _max_recent_target(poll, wait - period) < to_keep and _max_recent_target(poll, wait + period) >= poll.current


def _is_settled(poll: _Poll) -> bool:
    changed = poll.state.changed_at
    return changed is None or poll.now - changed >= poll.settings.lookback_seconds


def _hold_for_rollout(poll: _Poll) -> _Choice | None:
    """Return a decision that waits for the end of a rollout or rebalance. A change would start another rebalance."""
    if poll.figures.rolling_out:
        return _Choice(poll.current, ScalingReason.ROLLOUT_IN_PROGRESS, "rollout")
    if poll.figures.rebalancing:
        return _Choice(poll.current, ScalingReason.REBALANCING, "rebalance")
    return None


def _step(poll: _Poll, target: int) -> int:
    settings, partitions = poll.settings, poll.partitions
    return limited_step(
        poll.current, target, up=settings.max_step_up, down=settings.max_step_down, partitions=partitions
    )


def _keep_replicas(poll: _Poll) -> _Choice:
    limit = _limit_name(poll)
    if limit == "partitions":
        return _Choice(poll.current, ScalingReason.LIMITED_BY_PARTITIONS, limit)
    if limit and not fits(poll.need, poll.current):
        return _Choice(poll.current, ScalingReason.AT_MAXIMUM, limit)
    if max(1, poll.need.useful) < poll.floor:
        return _Choice(poll.current, ScalingReason.AT_MINIMUM, "minReplicas")
    return _Choice(poll.current, ScalingReason.WITHIN_TARGET)


def _limit_name(poll: _Poll) -> str:
    if poll.need.useful > poll.ceiling:
        return "maxReplicas"
    return "partitions" if poll.need.has_hot_partition else ""


def _finish(poll: _Poll, choice: _Choice) -> tuple[Decision, State]:
    to_keep, wait_seconds = poll.removal_plan
    bounds = Bounds(
        floor=poll.floor,
        ceiling=poll.ceiling,
        partitions=poll.partitions,
        current=poll.current,
        target=poll.target,
        recent_max=to_keep if poll.target < poll.current else poll.target,
        wait_seconds=wait_seconds,
        patience=poll.state.patience,
    )
    dry = poll.settings.dry_run and choice.desired != poll.current
    decision = Decision(
        at=poll.now,
        current=poll.current,
        desired=choice.desired,
        replicas=poll.current if dry else choice.desired,
        reason=ScalingReason.DRY_RUN if dry else choice.reason,
        need=poll.need.replicas,
        limited_by="dryRun" if dry else choice.limited_by,
        load=poll.load,
        lines=calculation_lines(poll.settings, poll.load, poll.need, bounds),
    )
    state = _record_change(poll, decision) if decision.changes_replicas else poll.state
    return decision, _record_decision(state, decision)


def _stabilization(settings: Settings, state: State) -> float:
    return settings.scale_down_stabilization_seconds * state.patience


def _removal_wait(settings: Settings, state: State, *, current: int, removed: int) -> float:
    """Return the seconds to wait before the removal of `removed` replicas.

    Small removals wait longer.
    """
    return _stabilization(settings, state) * max(1.0, (current - settings.floor) / removed)


def _record_change(poll: _Poll, decision: Decision) -> State:
    """Record a change. If removed replicas are soon needed again, the waiting time doubles."""
    state = replace(poll.state, changed_at=poll.now)
    if decision.replicas < decision.current:
        return replace(state, lowered_at=poll.now)
    if state.lowered_at is None:
        return state
    since, wait = poll.now - state.lowered_at, _stabilization(poll.settings, state)
    if since <= 2 * wait:
        return replace(state, patience=min(2 * state.patience, MAX_PATIENCE))
    return replace(state, patience=max(1, state.patience // 2)) if since > 4 * wait else state


def _record_decision(state: State, decision: Decision) -> State:
    record = Record(
        decision.at, decision.current, decision.desired, decision.reason, decision.need, decision.limited_by
    )
    last = state.decisions[-1] if state.decisions else None
    if last is not None and replace(last, at=record.at, need=record.need) == record:
        return state
    return replace(state, decisions=(*state.decisions, record)[-MAX_DECISIONS:])
