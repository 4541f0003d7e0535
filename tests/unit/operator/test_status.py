"""Outcomes to status: every condition in its state, stable while nothing changes, bounded."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.outcome import Component, Outcome, Rank, done, failed, skipped, waiting
from tidemill_operator.status import CONDITIONS, Report, interrupted, status

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
LATER = NOON + dt.timedelta(hours=1)
READY = [done(component, component.value) for component in Component]
TROUBLE = TidemillError(Reason.REFUSED, "the disk is full", "make room")
GONE = TidemillError(Reason.UNREACHABLE, "Kafka does not answer")
STALE = TidemillError(Reason.NOT_SUPPORTED, "spec.source.key: changed", "change it back")


def conditions(told: dict[str, Any]) -> dict[str, tuple[str, str, str]]:
    return {c["type"]: (c["status"], c["reason"], c["message"]) for c in told["conditions"]}


def replaced(outcome: Outcome) -> list[Outcome]:
    """All ready but for one component."""
    return [outcome if ready.component == outcome.component else ready for ready in READY]


def test_all_is_well() -> None:
    """Each component and Ready are true; nothing abnormal is listed."""
    told = conditions(status(None, Report(3, READY), NOON))
    assert told.pop("Progressing") == ("False", "Applied", "")
    assert told == {kind: ("True", "Applied", "") for kind in ("Ready", *CONDITIONS.values())}


PARTS: list[tuple[Outcome, tuple[str, str, str], tuple[str, str], dict[str, str], str]] = [
    (
        waiting(Component.PROCESSORS, "p", "0 of 1 ready"),
        ("False", "Waiting", "0 of 1 ready"),
        ("Waiting", "ProcessorsReady: 0 of 1 ready"),
        {"Reconciling": "ProcessorsReady: 0 of 1 ready"},
        "it comes by itself",
    ),
    (
        failed(Component.PROCESSORS, "p", TROUBLE),
        ("False", "Refused", "the disk is full; make room"),
        ("Refused", "ProcessorsReady: the disk is full; make room"),
        {"Stalled": "the disk is full; make room"},
        "somebody has to act",
    ),
    (
        failed(Component.PROCESSORS, "p", GONE),
        ("False", "Unreachable", "Kafka does not answer"),
        ("Unreachable", "ProcessorsReady: Kafka does not answer"),
        {"Reconciling": "ProcessorsReady: Kafka does not answer"},
        "it is tried again",
    ),
    (
        skipped(Component.PROCESSORS, "p"),
        ("True", "NotNeeded", ""),
        ("Applied", ""),
        {},
        "what is not asked for is as it should be",
    ),
    (
        skipped(Component.PROCESSORS, "p", Reason.BLOCKED, "waits for the topics"),
        ("Unknown", "Blocked", "waits for the topics"),
        ("Blocked", "ProcessorsReady: waits for the topics"),
        {"Reconciling": "ProcessorsReady: waits for the topics"},
        "not looked at, and never seen before",
    ),
]


@pytest.mark.parametrize(("outcome", "part", "ready", "abnormal", "why"), PARTS, ids=[row[4] for row in PARTS])
def test_the_condition_of_a_component_decides_what_ready_says(
    outcome: Outcome, part: tuple[str, str, str], ready: tuple[str, str], abnormal: dict[str, str], why: str
) -> None:
    """Its own condition, what Ready says of it, and which abnormal condition appears."""
    told = conditions(status(None, Report(1, replaced(outcome)), NOON))
    assert told["ProcessorsReady"] == part, why
    assert told["Ready"][1:] == ready, why
    assert told["Ready"][0] == ("True" if part[0] == "True" else "False"), why
    assert {kind: told[kind][2] for kind in ("Reconciling", "Stalled") if kind in told} == abnormal, why


def test_old_replicas_serve_while_new_ones_come() -> None:
    """Ready stays true and Progressing says how far it is; a part that nobody serves is not ready."""
    coming = waiting(Component.PROCESSORS, "p", "1 of 3 run as specified, 3 are available", serving=True)
    told = conditions(status(None, Report(2, replaced(coming)), NOON))
    assert told["Ready"] == ("True", "Applied", "")
    assert told["ProcessorsReady"] == ("True", "Waiting", coming.message)
    assert told["Progressing"] == told["Reconciling"] == ("True", "Waiting", f"ProcessorsReady: {coming.message}")
    idle = waiting(Component.PROCESSORS, "p", "0 of 3 run as specified, 0 are available")
    mixed = [*replaced(coming), idle]
    assert conditions(status(None, Report(2, mixed), NOON))["Ready"][:2] == ("False", "Waiting")


def test_a_rollout_that_is_stuck_needs_somebody() -> None:
    """Old replicas serve: ready. That the new ones do not come is told, and that nothing moves."""
    stuck = waiting(Component.PROCESSORS, "p", "no progress: look at its pods", serving=True, reason=Reason.STUCK)
    told = conditions(status(None, Report(2, replaced(stuck)), NOON))
    assert told["Ready"][0] == "True"
    assert told["Stalled"] == ("True", "Stuck", "no progress: look at its pods")
    assert told["Progressing"] == ("False", "Stuck", "no progress: look at its pods")


STILL = TidemillError(Reason.NOT_MOVING, "events wait and none is counted")


def test_events_that_stand_still_are_not_ready() -> None:
    """Whatever the parts say; the transition has its time, and goes when they move."""
    known = status(None, Report(1, READY, watched=True), NOON)
    told = status(known, Report(1, READY, watched=True, standing=STILL), LATER)
    assert conditions(told)["Ready"] == ("False", "EventsNotMoving", "events wait and none is counted")
    assert told == interrupted(known, STILL, LATER)
    assert interrupted(told, GONE, LATER) == told, "it is told by its first reason until the next pass"
    assert interrupted({}, STILL, NOON) == {}
    assert conditions(status(told, Report(1, READY, watched=True), LATER)) == conditions(known)


@pytest.mark.parametrize(
    ("watched", "standing", "state"), [(True, None, "True"), (True, GONE, "False"), (False, None, "False")]
)
def test_a_request_without_an_answer_is_no_outage(watched: bool, standing: TidemillError | None, state: str) -> None:
    """As long as somebody sees that events are counted: one broker of three that is away, say."""
    known = status(None, Report(1, READY), NOON)
    outcomes = replaced(failed(Component.TOPICS, "topics", GONE))
    told = conditions(status(known, Report(1, outcomes, watched=watched, standing=standing), LATER))
    assert told["Ready"][0] == told["TopicsReady"][0] == state
    assert told["TopicsReady"][1:] == ("Unreachable", "Kafka does not answer")
    assert told["Progressing"] == ("True", "Unreachable", "TopicsReady: Kafka does not answer")


def test_what_was_not_looked_at_stays_as_it_was_seen() -> None:
    """A server's outage does not make running processors unready; what did not run stays unknown."""
    blocked = [skipped(part, part.value, Reason.BLOCKED, "waits for the schema") for part in Component]
    known = status(None, Report(1, replaced(waiting(Component.API, "api", "starts"))), NOON)
    told = conditions(status(known, Report(1, blocked), LATER))
    assert told["ProcessorsReady"] == ("True", "Applied", "")
    assert told["APIReady"] == ("Unknown", "Blocked", "waits for the schema")


def test_a_refused_spec_over_a_running_one_is_stalled_and_ready() -> None:
    told = conditions(status(None, Report(2, READY, stalled=[STALE]), NOON))
    assert told["Ready"] == ("True", "Applied", "")
    assert told["Stalled"] == (
        "True",
        "NotSupported",
        "spec.source.key: changed; change it back; the accepted spec stays in force",
    )


def test_a_refused_spec_with_none_before_it_is_not_ready() -> None:
    blocked = [skipped(part, part.value, Reason.BLOCKED, "waits for a spec") for part in Component]
    told = conditions(status(None, Report(1, blocked, stalled=[STALE], accepted=False), NOON))
    assert told["Ready"] == ("False", "NotSupported", "spec.source.key: changed; change it back")
    assert told["Stalled"] == ("True", "NotSupported", "spec.source.key: changed; change it back")
    assert "Reconciling" not in told


def test_suspended_is_ready_with_a_reason() -> None:
    told = conditions(status(None, Report(1, READY, suspended=True), NOON))
    assert told["Ready"] == ("True", "Suspended", "suspended: no processors run")
    assert told["Suspended"] == ("True", "Suspended", "spec.suspend is true")


def test_paused_keeps_everything_else() -> None:
    """Only the condition that says so is new, and it goes with the next pass that is not paused."""
    known = status(None, Report(1, READY, schema="shop__orders"), NOON)
    paused = status(known, Report(2, paused=True), LATER)  # not even looked at
    assert paused["conditions"][:-1] == known["conditions"]
    assert paused["observedGeneration"] == 1
    assert paused["schema"] == "shop__orders"
    assert conditions(paused)["ReconciliationPaused"][0] == "True"
    assert status(paused, Report(2, paused=True), LATER + dt.timedelta(days=1)) == paused
    assert "ReconciliationPaused" not in conditions(status(paused, Report(2, READY), LATER))


def test_paused_conditions_go_on_telling_the_truth() -> None:
    """What is seen is told; the generation is the one that was applied, and a refusal of before stands."""
    known = status(None, Report(1, READY, stalled=[STALE], suspended=True), NOON)
    seen = replaced(waiting(Component.PROCESSORS, "p", "0 of 1 are available"))
    told = status(known, Report(2, seen, paused=True, judged=False), LATER)
    assert conditions(told)["ProcessorsReady"] == ("False", "Waiting", "0 of 1 are available")
    assert conditions(told)["Ready"][0] == "False"
    assert conditions(told)["ReconciliationPaused"][0] == "True"
    assert conditions(told)["Stalled"][1] == "NotSupported"
    assert "Suspended" in conditions(told)
    assert told["observedGeneration"] == 1


def test_a_stalled_component_that_only_waits_now_is_not_stalled_any_more() -> None:
    """Components are looked at in each pass, although the spec was not judged."""
    wrong = TidemillError(Reason.INVALID_SPEC, "there is no folder crm-kafka", "create it")
    known = status(None, Report(1, replaced(failed(Component.TOPICS, "t", wrong))), NOON)
    assert conditions(known)["Stalled"][1] == "InvalidSpec"
    told = status(known, Report(1, replaced(failed(Component.TOPICS, "t", GONE)), judged=False), LATER)
    assert "Stalled" not in conditions(told)


def test_times_change_with_the_state_and_not_with_the_message() -> None:
    first = status(None, Report(1, replaced(waiting(Component.API, "api", "starts"))), NOON)
    second = status(first, Report(2, replaced(waiting(Component.API, "api", "nearly"))), LATER)
    third = status(second, Report(2, READY), LATER)
    times = [
        {c["type"]: c["lastTransitionTime"] for c in told["conditions"]}["APIReady"] for told in (first, second, third)
    ]
    assert times == ["2026-03-01T12:00:00Z", "2026-03-01T12:00:00Z", "2026-03-01T13:00:00Z"]


def test_every_condition_tells_the_generation_it_is_about() -> None:
    told = status(None, Report(7, READY), NOON)
    assert told["observedGeneration"] == 7
    assert {condition["observedGeneration"] for condition in told["conditions"]} == {7}


def test_a_moment_in_another_zone_is_written_in_utc() -> None:
    moment = dt.datetime(2026, 3, 1, 13, tzinfo=dt.timezone(dt.timedelta(hours=1)))
    assert {c["lastTransitionTime"] for c in status(None, Report(1, READY), moment)["conditions"]} == {
        "2026-03-01T12:00:00Z"
    }


def test_facts_outlive_a_pass_that_saw_none() -> None:
    known = status(
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
    assert status(known, Report(1, READY), LATER) == known


def test_texts_and_lists_are_bounded() -> None:
    """A status always fits the CRD's bounds."""
    long = TidemillError(Reason.REFUSED, "x" * 5000)
    told = status(
        None, Report(1, [failed(c, "a", long) for c in Component], topics=[{"name": str(n)} for n in range(40)]), NOON
    )
    assert {len(condition["message"]) for condition in told["conditions"]} == {1024}
    assert len(told["topics"]) == 16


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
def test_order_never_shows_and_the_same_is_equal(outcomes: list[Outcome], random: Any, suspended: bool) -> None:
    """Shuffled outcomes make the same status; the same pass an hour later makes an equal one."""
    shuffled = list(outcomes)
    random.shuffle(shuffled)
    first = status(None, Report(1, outcomes, suspended=suspended), NOON)
    assert status(None, Report(1, shuffled, suspended=suspended), NOON) == first
    assert status(first, Report(1, shuffled, suspended=suspended), LATER) == first
