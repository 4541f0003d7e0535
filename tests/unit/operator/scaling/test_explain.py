"""Tests of the explanation of a decision, of status.scaling, and of settings from a spec."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scaled.polls import NOW, Stream, decision_of, figures
from tidemill_contract.resource.spec import ScalingSpec
from tidemill_operator.scaling import Decision, ScalingReason, Settings, State, explain
from tidemill_operator.scaling.explain import MAX_MESSAGE, scaling_status


def test_the_explanation_has_the_reason_and_the_remedy() -> None:
    decision = decision_of(Settings(), figures(*[100_000] * 12), current=1)
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
    """The explanation of every reason fits into the status."""
    decision = Decision(NOW, 1, 2, 2, reason)
    assert explain(decision).startswith(f"1 → 2 replicas: {reason}")
    assert len(scaling_status(Settings(), decision, State())["message"]) <= MAX_MESSAGE


def test_status_scaling_is_rounded_so_that_it_rarely_changes() -> None:
    """Figures are rounded, and the time of the last change is written in UTC."""
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


def test_the_settings_are_those_of_the_spec() -> None:
    """Settings and spec have the same defaults. Written values are converted."""
    assert Settings.of(ScalingSpec(), "500ms") == Settings()
    written = {"target": {"freshness": "10s"}, "scaleToZeroAfter": "1h", "pollInterval": "5s"}
    converted = Settings.of(ScalingSpec.model_validate(written), "1s")
    expected = Settings(freshness_seconds=10.0, scale_to_zero_after_seconds=3600.0, poll_seconds=5.0, flush_seconds=1.0)
    assert converted == expected
