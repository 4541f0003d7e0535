"""Tests of the combination of outcomes: the worst rank counts, changes add up, and the order does not matter."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.outcome import Component, Outcome, Rank, combine, done, failed, skipped, waiting

TOPICS = Component.TOPICS
OUTCOMES = st.builds(
    Outcome,
    rank=st.sampled_from(Rank),
    component=st.sampled_from((TOPICS, Component.SCHEMA)),
    name=st.sampled_from("abc"),
    reason=st.sampled_from(Reason),
    message=st.sampled_from(("", "one", "two")),
    changed=st.integers(0, 5),
)


@given(st.lists(OUTCOMES), st.randoms(use_true_random=False))
def test_order_does_not_matter(outcomes: list[Outcome], random: Any) -> None:
    shuffled = list(outcomes)
    random.shuffle(shuffled)
    assert combine(shuffled, TOPICS) == combine(outcomes, TOPICS)


@given(st.lists(OUTCOMES, min_size=1), st.integers(0, 20))
def test_grouping_does_not_matter(outcomes: list[Outcome], cut: int) -> None:
    own = [outcome for outcome in outcomes if outcome.component == TOPICS]
    first, rest = own[:cut], own[cut:]
    folded = [combine(first, TOPICS)] if first else []
    assert combine([*folded, *rest], TOPICS) == combine(outcomes, TOPICS)


@given(st.lists(OUTCOMES))
def test_the_worst_rank_counts_and_changes_add_up(outcomes: list[Outcome]) -> None:
    own = [outcome for outcome in outcomes if outcome.component == TOPICS]
    combined = combine(outcomes, TOPICS)
    assert combined.rank == max((outcome.rank for outcome in own), default=Rank.SKIPPED)
    assert combined.changed == sum(outcome.changed for outcome in own)


ERROR = TidemillError(Reason.REFUSED, "no right", "grant it")
ROWS: list[tuple[list[Outcome], Outcome, str]] = [
    ([], skipped(TOPICS, ""), "without outcomes"),
    ([done(Component.SCHEMA, "s")], skipped(TOPICS, ""), "other components do not count"),
    ([skipped(TOPICS, "a"), done(TOPICS, "b")], done(TOPICS, "b"), "done counts more than skipped"),
    (
        [waiting(TOPICS, "a", "soon"), done(TOPICS, "b", changed=2)],
        waiting(TOPICS, "a", "soon", changed=2),
        "changes add up",
    ),
    ([failed(TOPICS, "a", ERROR), waiting(TOPICS, "b", "soon")], failed(TOPICS, "a", ERROR), "failed counts most"),
]


@pytest.mark.parametrize(("outcomes", "expected", "why"), ROWS, ids=[row[2] for row in ROWS])
def test_the_worst_outcome_of_a_component_counts(outcomes: list[Outcome], expected: Outcome, why: str) -> None:
    assert combine(outcomes, TOPICS) == expected, why


def test_a_failure_has_the_message_and_the_remedy() -> None:
    outcome = failed(TOPICS, "a", ERROR, changed=1)
    assert (outcome.reason, outcome.message, outcome.changed) == (Reason.REFUSED, "no right; grant it", 1)


def test_outcomes_with_different_facts_are_equal() -> None:
    """Observed facts are part of the status, and not of the comparison."""
    assert done(TOPICS, "a", observed={"partitions": 1}) == done(TOPICS, "a", observed={"partitions": 2})
