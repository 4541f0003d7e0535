"""Tests of single decisions about replicas: a table of situations with the expected number and reason."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from scaled.polls import NOW, WATCHED, decision_of, figures
from tidemill_operator.scaling import PartitionFigures, ScalingFigures, ScalingReason, Settings, State, explain


@dataclass(frozen=True)
class Case:
    reason: str
    seen: ScalingFigures | None
    current: int
    expected: tuple[int, ScalingReason, str]
    settings: Settings = field(default_factory=Settings)
    state: State = WATCHED


K = 100_000
EVEN = figures(*[60_000] * 6, ready=2)  # The formula gives 4 replicas, aligned to 6 for 6 partitions.
CUT = (ScalingReason.STEP_LIMITED, "maxStepUp")
CASES = [
    Case("no lag", figures(0, 0, 0), 1, (1, ScalingReason.WITHIN_TARGET, "")),
    Case("lag that one replica carries", figures(30_000, 30_000, 30_000), 1, (1, ScalingReason.WITHIN_TARGET, "")),
    Case(
        "lag above the threshold for one replica",
        figures(*[60_000] * 4),
        1,
        (2, ScalingReason.SCALED_UP, ""),
        Settings(lag_threshold=120_000),
    ),
    Case(
        "with four partitions, three replicas are as slow as two",
        figures(*[60_000] * 4),
        1,
        (4, ScalingReason.SCALED_UP, ""),
    ),
    Case(
        "one hot partition needs one replica",
        figures(10 * K, 0, 0, 0),
        1,
        (1, ScalingReason.LIMITED_BY_PARTITIONS, "partitions"),
    ),
    Case(
        "two hot partitions need two replicas",
        figures(10 * K, 0, 0, 10 * K),
        1,
        (2, ScalingReason.SCALED_UP, "partitions"),
    ),
    Case("the default step is cut, here to 6, as 5 are as slow as 4", figures(*[K] * 12), 1, (6, *CUT)),
    Case(
        "the default step grows with the number of replicas", figures(*[K] * 24), 7, (24, ScalingReason.SCALED_UP, "")
    ),
    Case("the default step doubles the number", figures(*[K] * 32), 8, (16, *CUT)),
    Case("maxStepUp is kept exactly", figures(*[K] * 12), 1, (5, *CUT), Settings(max_step_up=4)),
    Case("maxStepUp of one", EVEN, 2, (3, ScalingReason.STEP_LIMITED, "maxStepUp"), Settings(max_step_up=1)),
    Case("already at maxReplicas", EVEN, 2, (2, ScalingReason.AT_MAXIMUM, "maxReplicas"), Settings(max_replicas=2)),
    Case("up to maxReplicas", EVEN, 2, (3, ScalingReason.SCALED_UP, "maxReplicas"), Settings(max_replicas=3)),
    Case("a replica for each partition", figures(K, K, ready=2), 2, (2, ScalingReason.WITHIN_TARGET, "")),
    Case(
        "a need of more replicas than partitions",
        figures(K, K + 1, ready=2),
        2,
        (2, ScalingReason.LIMITED_BY_PARTITIONS, "partitions"),
    ),
    Case(
        "already at minReplicas",
        figures(0, 0, 0, ready=2),
        2,
        (2, ScalingReason.AT_MINIMUM, "minReplicas"),
        Settings(min_replicas=2),
    ),
    Case(
        "below a new minReplicas",
        figures(0, 0, 0),
        1,
        (2, ScalingReason.SCALED_UP, "minReplicas"),
        Settings(min_replicas=2),
    ),
    Case("above a new maxReplicas", EVEN, 5, (3, ScalingReason.SCALED_DOWN, "maxReplicas"), Settings(max_replicas=3)),
    Case("more replicas than partitions", figures(0, 0), 5, (2, ScalingReason.SCALED_DOWN, "partitions")),
    Case(
        "within scaleUpCooldown",
        EVEN,
        2,
        (2, ScalingReason.COOLDOWN, "scaleUpCooldown"),
        state=State(changed_at=NOW - 89),
    ),
    Case("after scaleUpCooldown", EVEN, 2, (6, ScalingReason.SCALED_UP, ""), state=State(changed_at=NOW - 90)),
    Case("fewer, after the stabilisation", figures(*[0] * 6, ready=2), 2, (1, ScalingReason.SCALED_DOWN, "")),
    Case(
        "fewer, cut by maxStepDown",
        figures(*[0] * 6, ready=6),
        6,
        (5, ScalingReason.STEP_LIMITED, "maxStepDown"),
        Settings(max_step_down=1),
    ),
    Case(
        "fewer, but not watched for the whole stabilisation",
        figures(*[0] * 6, ready=2),
        2,
        (2, ScalingReason.STABILIZING, "scaleDownStabilization"),
        state=replace(WATCHED, watched_since=NOW - 599),
    ),
    Case(
        "fewer, and within the stabilisation two were needed",
        figures(*[0] * 6, ready=3),
        3,
        (2, ScalingReason.SCALED_DOWN, ""),
        state=replace(WATCHED, wanted=((NOW - 590, 2),)),
    ),
    Case(
        "fewer, but within the stabilisation three were needed",
        figures(*[0] * 6, ready=3),
        3,
        (3, ScalingReason.STABILIZING, "scaleDownStabilization"),
        state=replace(WATCHED, wanted=((NOW - 590, 3),)),
    ),
    Case(
        "fewer, and four were needed before the stabilisation",
        figures(*[0] * 6, ready=4),
        4,
        (1, ScalingReason.SCALED_DOWN, ""),
        state=replace(WATCHED, wanted=((NOW - 600, 4),)),
    ),
    Case(
        "to remove one of three takes three times as long as to remove all three",
        figures(*[0] * 6, ready=4),
        4,
        (4, ScalingReason.STABILIZING, "scaleDownStabilization"),
        state=replace(WATCHED, wanted=((NOW - 1799, 4), (NOW - 1, 3))),
    ),
    Case(
        "one of four, after three times the stabilisation",
        figures(*[0] * 6, ready=4),
        4,
        (3, ScalingReason.SCALED_DOWN, ""),
        state=replace(WATCHED, wanted=((NOW - 1800, 4), (NOW - 1, 3))),
    ),
    Case("rebalancing", replace(EVEN, rebalancing=True), 2, (2, ScalingReason.REBALANCING, "rebalance")),
    Case("rollout", replace(EVEN, rolling_out=True), 2, (2, ScalingReason.ROLLOUT_IN_PROGRESS, "rollout")),
    Case("saturated", replace(EVEN, database_saturated=True), 2, (2, ScalingReason.DATABASE_SATURATED, "database")),
    Case(
        "a saturated Postgres does not prevent fewer",
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
    Case("no partitions are no figures", ScalingFigures({}, 2), 2, (2, ScalingReason.FIGURES_MISSING, "")),
    Case("dry run", EVEN, 2, (6, ScalingReason.DRY_RUN, "dryRun"), Settings(dry_run=True)),
    Case("dry run, nothing to do", figures(0), 1, (1, ScalingReason.WITHIN_TARGET, ""), Settings(dry_run=True)),
    Case(
        "a waiting stage gets no more replicas",
        figures(*[K] * 6, stage_waits=True, rolling_out=True),
        2,
        (2, ScalingReason.STAGE_WAITS, "stage"),
    ),
    Case("a waiting stage with enough replicas", figures(0, stage_waits=True), 1, (1, ScalingReason.WITHIN_TARGET, "")),
    Case("mode external", EVEN, 2, (2, ScalingReason.EXTERNAL, ""), Settings(mode="external")),
    Case(
        "scaleToZeroAfter without events",
        figures(0, 0),
        2,
        (0, ScalingReason.SCALED_TO_ZERO, ""),
        Settings(scale_to_zero_after_seconds=60.0),
        replace(WATCHED, idle_since=NOW - 60),
    ),
    Case(
        "less than scaleToZeroAfter without events",
        figures(0, 0),
        1,
        (1, ScalingReason.WITHIN_TARGET, ""),
        Settings(scale_to_zero_after_seconds=60.0),
        replace(WATCHED, idle_since=NOW - 59),
    ),
    Case(
        "no arrivals, but lag",
        figures(0, 5),
        1,
        (1, ScalingReason.WITHIN_TARGET, ""),
        Settings(scale_to_zero_after_seconds=60.0),
        replace(WATCHED, idle_since=NOW - 60),
    ),
    Case(
        "scaled to zero, and no events",
        figures(0, 0, ready=0),
        0,
        (0, ScalingReason.SCALED_TO_ZERO, ""),
        Settings(scale_to_zero_after_seconds=60.0),
    ),
    Case(
        "scaled to zero, and an event arrives",
        figures(0, 1, ready=0),
        0,
        (1, ScalingReason.WOKEN_BY_ARRIVAL, ""),
        Settings(scale_to_zero_after_seconds=60.0),
        State(changed_at=NOW - 1),
    ),
    Case(
        "an event starts minReplicas",
        figures(0, 1, ready=0),
        0,
        (2, ScalingReason.WOKEN_BY_ARRIVAL, ""),
        Settings(min_replicas=2, scale_to_zero_after_seconds=60.0),
    ),
    Case(
        "zero replicas without scaleToZeroAfter", figures(0, 0, ready=0), 0, (1, ScalingReason.SCALED_UP, "minReplicas")
    ),
    Case(
        "freshness with a known speed: 3 · 20,000 events take one replica 60 s at 1,000 events/s",
        figures(20_000, 20_000, 20_000),
        1,
        (3, ScalingReason.SCALED_UP, ""),
        Settings(freshness_seconds=20.0, catch_up_seconds=1e9),
        replace(WATCHED, rate_per_replica=1000.0),
    ),
    Case(
        "freshness with an unknown speed adds one replica",
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
def test_one_poll_decides_from_its_figures_and_the_stored_state(case: Case) -> None:
    decision = decision_of(case.settings, case.seen, current=case.current, state=case.state)
    assert (decision.desired, decision.reason, decision.limited_by) == case.expected, explain(decision)
    assert decision.replicas == (case.current if case.settings.dry_run else decision.desired)


def test_a_partition_without_a_position_lags_from_its_first_offset() -> None:
    """Only events that Kafka still has are lag."""
    assert PartitionFigures(400, 1000, None, 0).lag == 600
    assert PartitionFigures(400, 1000, 100, 0).lag == 600
    assert PartitionFigures(400, 1000, 900, 0).lag == 100
    assert PartitionFigures(400, 1000, 1001, 0).lag == 0
