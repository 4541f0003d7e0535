"""Tests of the status from outcomes: states of all conditions, stable without changes, and bounded."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.outcome import Component, Outcome, Rank, done, failed, skipped, waiting
from tidemill_operator.status import CONDITIONS, Report, new_status, not_counting_status

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
LATER = NOON + dt.timedelta(hours=1)
READY = [done(component, component.value) for component in Component]
TROUBLE = TidemillError(Reason.REFUSED, "the disk is full", "make room")
GONE = TidemillError(Reason.UNREACHABLE, "Kafka does not answer")
STALE = TidemillError(Reason.NOT_SUPPORTED, "spec.source.key: changed", "change it back")


def conditions(result: dict[str, Any]) -> dict[str, tuple[str, str, str]]:
    return {c["type"]: (c["status"], c["reason"], c["message"]) for c in result["conditions"]}


def replaced(outcome: Outcome) -> list[Outcome]:
    """Return outcomes of which all are done except one component."""
    return [outcome if ready.component == outcome.component else ready for ready in READY]


def test_all_conditions_are_true_if_all_outcomes_are_done() -> None:
    """Each component and Ready are true, and no abnormal condition is listed."""
    result = conditions(new_status(None, Report(3, READY), NOON))
    assert result.pop("Progressing") == ("False", "Applied", "")
    assert result == {kind: ("True", "Applied", "") for kind in ("Ready", *CONDITIONS.values())}


PARTS: list[tuple[Outcome, tuple[str, str, str], tuple[str, str], dict[str, str], str]] = [
    (
        waiting(Component.PROCESSORS, "p", "0 of 1 ready"),
        ("False", "Waiting", "0 of 1 ready"),
        ("Waiting", "ProcessorsReady: 0 of 1 ready"),
        {"Reconciling": "ProcessorsReady: 0 of 1 ready"},
        "waiting needs no action",
    ),
    (
        failed(Component.PROCESSORS, "p", TROUBLE),
        ("False", "Refused", "the disk is full; make room"),
        ("Refused", "ProcessorsReady: the disk is full; make room"),
        {"Stalled": "the disk is full; make room"},
        "a refusal needs an action",
    ),
    (
        failed(Component.PROCESSORS, "p", GONE),
        ("False", "Unreachable", "Kafka does not answer"),
        ("Unreachable", "ProcessorsReady: Kafka does not answer"),
        {"Reconciling": "ProcessorsReady: Kafka does not answer"},
        "an unreachable server is tried again",
    ),
    (
        skipped(Component.PROCESSORS, "p"),
        ("True", "NotNeeded", ""),
        ("Applied", ""),
        {},
        "a component that is not needed is ready",
    ),
    (
        skipped(Component.PROCESSORS, "p", Reason.BLOCKED, "waits for the topics"),
        ("Unknown", "Blocked", "waits for the topics"),
        ("Blocked", "ProcessorsReady: waits for the topics"),
        {"Reconciling": "ProcessorsReady: waits for the topics"},
        "a blocked component that was never observed is unknown",
    ),
]


@pytest.mark.parametrize(("outcome", "part", "ready", "abnormal", "why"), PARTS, ids=[row[4] for row in PARTS])
def test_the_outcome_of_a_component_decides_its_condition_and_ready(
    outcome: Outcome, part: tuple[str, str, str], ready: tuple[str, str], abnormal: dict[str, str], why: str
) -> None:
    """The outcome decides the condition of its component, Ready, and the abnormal condition."""
    result = conditions(new_status(None, Report(1, replaced(outcome)), NOON))
    assert result["ProcessorsReady"] == part, why
    assert result["Ready"][1:] == ready, why
    assert result["Ready"][0] == ("True" if part[0] == "True" else "False"), why
    assert {kind: result[kind][2] for kind in ("Reconciling", "Stalled") if kind in result} == abnormal, why


def test_a_pipeline_is_ready_while_former_replicas_serve() -> None:
    """Ready is still true, and Progressing has the progress. A component without a serving replica is not ready."""
    rolling_out = waiting(Component.PROCESSORS, "p", "1 of 3 run as specified, 3 are available", serving=True)
    result = conditions(new_status(None, Report(2, replaced(rolling_out)), NOON))
    assert result["Ready"] == ("True", "Applied", "")
    assert result["ProcessorsReady"] == ("True", "Waiting", rolling_out.message)
    assert (
        result["Progressing"] == result["Reconciling"] == ("True", "Waiting", f"ProcessorsReady: {rolling_out.message}")
    )
    idle = waiting(Component.PROCESSORS, "p", "0 of 3 run as specified, 0 are available")
    mixed = [*replaced(rolling_out), idle]
    assert conditions(new_status(None, Report(2, mixed), NOON))["Ready"][:2] == ("False", "Waiting")


def test_a_stuck_rollout_is_stalled() -> None:
    """Former replicas serve, so Ready is true. Stalled and Progressing have the reason."""
    stuck = waiting(Component.PROCESSORS, "p", "no progress: look at its pods", serving=True, reason=Reason.STUCK)
    result = conditions(new_status(None, Report(2, replaced(stuck)), NOON))
    assert result["Ready"][0] == "True"
    assert result["Stalled"] == ("True", "Stuck", "no progress: look at its pods")
    assert result["Progressing"] == ("False", "Stuck", "no progress: look at its pods")


NOT_MOVING = TidemillError(Reason.NOT_MOVING, "events wait and none is counted")


def test_a_pipeline_is_not_ready_while_no_event_is_counted() -> None:
    """Ready is false although all components are ready. Ready is true again when events are counted."""
    former = new_status(None, Report(1, READY, has_observer=True), NOON)
    result = new_status(former, Report(1, READY, has_observer=True, progress_error=NOT_MOVING), LATER)
    assert conditions(result)["Ready"] == ("False", "EventsNotMoving", "events wait and none is counted")
    assert result == not_counting_status(former, NOT_MOVING, LATER)
    assert not_counting_status(result, GONE, LATER) == result, "the first reason is kept until the next pass"
    assert not_counting_status({}, NOT_MOVING, NOON) == {}
    assert conditions(new_status(result, Report(1, READY, has_observer=True), LATER)) == conditions(former)


@pytest.mark.parametrize(
    ("has_observer", "progress_error", "state"), [(True, None, "True"), (True, GONE, "False"), (False, None, "False")]
)
def test_an_unreachable_server_is_no_outage_while_events_are_counted(
    has_observer: bool, progress_error: TidemillError | None, state: str
) -> None:
    """The observer sees that events are counted, for example while one of three brokers is down."""
    former = new_status(None, Report(1, READY), NOON)
    outcomes = replaced(failed(Component.TOPICS, "topics", GONE))
    result = conditions(
        new_status(former, Report(1, outcomes, has_observer=has_observer, progress_error=progress_error), LATER)
    )
    assert result["Ready"][0] == result["TopicsReady"][0] == state
    assert result["TopicsReady"][1:] == ("Unreachable", "Kafka does not answer")
    assert result["Progressing"] == ("True", "Unreachable", "TopicsReady: Kafka does not answer")


def test_a_component_that_was_not_observed_keeps_its_last_state() -> None:
    """Running processors are still ready. A component that was not ready becomes unknown."""
    blocked = [skipped(part, part.value, Reason.BLOCKED, "waits for the schema") for part in Component]
    former = new_status(None, Report(1, replaced(waiting(Component.API, "api", "starts"))), NOON)
    result = conditions(new_status(former, Report(1, blocked), LATER))
    assert result["ProcessorsReady"] == ("True", "Applied", "")
    assert result["APIReady"] == ("Unknown", "Blocked", "waits for the schema")


def test_a_refused_spec_over_a_running_one_is_stalled_and_ready() -> None:
    result = conditions(new_status(None, Report(2, READY, stalled=[STALE]), NOON))
    assert result["Ready"] == ("True", "Applied", "")
    assert result["Stalled"] == (
        "True",
        "NotSupported",
        "spec.source.key: changed; change it back; the accepted spec stays in force",
    )


def test_a_refused_first_spec_is_not_ready() -> None:
    blocked = [skipped(part, part.value, Reason.BLOCKED, "waits for a spec") for part in Component]
    result = conditions(new_status(None, Report(1, blocked, stalled=[STALE], accepted=False), NOON))
    assert result["Ready"] == ("False", "NotSupported", "spec.source.key: changed; change it back")
    assert result["Stalled"] == ("True", "NotSupported", "spec.source.key: changed; change it back")
    assert "Reconciling" not in result


def test_a_suspended_pipeline_is_ready_with_a_reason() -> None:
    result = conditions(new_status(None, Report(1, READY, suspended=True), NOON))
    assert result["Ready"] == ("True", "Suspended", "suspended: no processors run")
    assert result["Suspended"] == ("True", "Suspended", "spec.suspend is true")


def test_a_pause_keeps_all_other_conditions() -> None:
    """Only the condition for the pause is added. The next pass without a pause removes it."""
    former = new_status(None, Report(1, READY, schema="shop__orders"), NOON)
    paused = new_status(former, Report(2, paused=True), LATER)  # without an observation
    assert paused["conditions"][:-1] == former["conditions"]
    assert paused["observedGeneration"] == 1
    assert paused["schema"] == "shop__orders"
    assert conditions(paused)["ReconciliationPaused"][0] == "True"
    assert new_status(paused, Report(2, paused=True), LATER + dt.timedelta(days=1)) == paused
    assert "ReconciliationPaused" not in conditions(new_status(paused, Report(2, READY), LATER))


def test_conditions_of_a_paused_pipeline_are_updated() -> None:
    """Observed components are updated. The generation is that of the applied spec, and its refusal is kept."""
    former = new_status(None, Report(1, READY, stalled=[STALE], suspended=True), NOON)
    observed = replaced(waiting(Component.PROCESSORS, "p", "0 of 1 are available"))
    result = new_status(former, Report(2, observed, paused=True, spec_checked=False), LATER)
    assert conditions(result)["ProcessorsReady"] == ("False", "Waiting", "0 of 1 are available")
    assert conditions(result)["Ready"][0] == "False"
    assert conditions(result)["ReconciliationPaused"][0] == "True"
    assert conditions(result)["Stalled"][1] == "NotSupported"
    assert "Suspended" in conditions(result)
    assert result["observedGeneration"] == 1


def test_a_component_that_no_longer_fails_ends_stalled() -> None:
    """Components are observed in each pass, although the spec is not checked."""
    wrong = TidemillError(Reason.INVALID_SPEC, "there is no folder crm-kafka", "create it")
    former = new_status(None, Report(1, replaced(failed(Component.TOPICS, "t", wrong))), NOON)
    assert conditions(former)["Stalled"][1] == "InvalidSpec"
    result = new_status(former, Report(1, replaced(failed(Component.TOPICS, "t", GONE)), spec_checked=False), LATER)
    assert "Stalled" not in conditions(result)


def test_transition_times_change_with_the_state_and_not_with_the_message() -> None:
    first = new_status(None, Report(1, replaced(waiting(Component.API, "api", "starts"))), NOON)
    second = new_status(first, Report(2, replaced(waiting(Component.API, "api", "nearly"))), LATER)
    third = new_status(second, Report(2, READY), LATER)
    times = [
        {c["type"]: c["lastTransitionTime"] for c in result["conditions"]}["APIReady"]
        for result in (first, second, third)
    ]
    assert times == ["2026-03-01T12:00:00Z", "2026-03-01T12:00:00Z", "2026-03-01T13:00:00Z"]


def test_every_condition_has_the_generation_of_the_status() -> None:
    result = new_status(None, Report(7, READY), NOON)
    assert result["observedGeneration"] == 7
    assert {condition["observedGeneration"] for condition in result["conditions"]} == {7}


def test_a_moment_in_another_zone_is_written_in_utc() -> None:
    moment = dt.datetime(2026, 3, 1, 13, tzinfo=dt.timezone(dt.timedelta(hours=1)))
    assert {c["lastTransitionTime"] for c in new_status(None, Report(1, READY), moment)["conditions"]} == {
        "2026-03-01T12:00:00Z"
    }


def test_a_pass_without_facts_keeps_the_former_facts() -> None:
    former = new_status(
        None,
        Report(
            1,
            READY,
            topics=[{"name": "a", "partitions": 3}],
            schema="s",
            endpoints={"api": "http://a"},
            aggregations=[{"name": "x", "version": 1}],
        ),
        NOON,
    )
    assert new_status(former, Report(1, READY), LATER) == former


def test_texts_and_lists_are_bounded() -> None:
    """A status always fits the bounds of the CRD."""
    long = TidemillError(Reason.REFUSED, "x" * 5000)
    result = new_status(
        None, Report(1, [failed(c, "a", long) for c in Component], topics=[{"name": str(n)} for n in range(40)]), NOON
    )
    assert {len(condition["message"]) for condition in result["conditions"]} == {1024}
    assert len(result["topics"]) == 16


OUTCOMES = st.lists(
    st.builds(
        Outcome,
        rank=st.sampled_from(Rank),
        component=st.sampled_from(Component),
        name=st.sampled_from("ab"),
        reason=st.sampled_from(Reason),
        message=st.sampled_from(("", "text")),
    ),
    max_size=12,
)


@given(OUTCOMES, st.randoms(use_true_random=False), st.booleans())
def test_the_order_of_outcomes_does_not_matter_and_a_status_is_stable(
    outcomes: list[Outcome], random: Any, suspended: bool
) -> None:
    """The same outcomes an hour later give an equal status."""
    shuffled = list(outcomes)
    random.shuffle(shuffled)
    first = new_status(None, Report(1, outcomes, suspended=suspended), NOON)
    assert new_status(None, Report(1, shuffled, suspended=suspended), NOON) == first
    assert new_status(first, Report(1, shuffled, suspended=suspended), LATER) == first
