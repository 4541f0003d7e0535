"""Tests of the rules of `spec.processor.scaling`: each error names its field, its value and the remedy."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill_contract.resource.scaling_rules import scaling_faults
from tidemill_contract.resource.spec import ScalingSpec


def faults(raw: dict[str, Any], *, partitions: int | None = 6, flush_ms: int = 500) -> list[str]:
    """Return the field, value and remedy of each error."""
    spec = ScalingSpec.model_validate(raw)
    scaling_errors = list(scaling_faults(spec, partitions, flush_ms=flush_ms))
    return [
        f"{fault.path.removeprefix('spec.processor.scaling.')}={fault.value}: {fault.remedy}"
        for fault in scaling_errors
    ]


@pytest.mark.parametrize(
    ("raw", "expected", "reason"),
    [
        ({}, [], "the defaults are valid"),
        ({"minReplicas": 2, "maxReplicas": 6}, [], "there may be a replica for each partition"),
        ({"maxReplicas": 7}, ["maxReplicas=7: write at most 6"], "the seventh replica would be idle"),
        ({"minReplicas": 7}, ["minReplicas=7: write at most 6"], "the seventh replica would be idle"),
        (
            {"minReplicas": 3, "maxReplicas": 2},
            ["minReplicas=3: lower minReplicas, or raise maxReplicas"],
            "the minimum is above the maximum",
        ),
        (
            {"minReplicas": 0},
            ["minReplicas=0: write 1, or add scaleToZeroAfter, such as 15m"],
            "the last replica would never stop",
        ),
        ({"minReplicas": 0, "scaleToZeroAfter": "15m"}, [], "the last replica stops after 15 minutes"),
        ({"minReplicas": 0, "mode": "external"}, [], "another system decides about replicas"),
        ({"catchUp": "5s"}, ["catchUp=5s: write 10s to 1d"], "a replica takes longer to start"),
        ({"scaleUpCooldown": "2h"}, ["scaleUpCooldown=2h: write 0s to 1h"], "the pipeline would hardly ever scale up"),
        (
            {"scaleDownStabilization": "2d"},
            ["scaleDownStabilization=2d: write 0s to 1d"],
            "the stored history is bounded",
        ),
        (
            {"pollInterval": "500ms", "lookback": "2s"},
            ["pollInterval=500ms: write 1s to 5m"],
            "commits are as frequent, and polls would see no change",
        ),
        (
            {"pollInterval": "2m"},
            ["lookback=2m: make lookback at least twice as long as pollInterval"],
            "the speed of a replica needs two polls",
        ),
        (
            {"scaleToZeroAfter": "1s"},
            ["scaleToZeroAfter=1s: write 10s to 30d"],
            "every short pause would stop all replicas",
        ),
        ({"target": {"freshness": "10s"}}, [], "freshness may replace lag"),
        (
            {"target": {"freshness": "800ms"}},
            ["target.freshness=800ms: write 1s or more, or shorten flushInterval"],
            "a commit already takes 500 ms",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_with_a_remedy(
    raw: dict[str, Any], expected: list[str], reason: str
) -> None:
    assert faults(raw) == expected, reason


def test_no_number_of_replicas_is_too_high_if_the_platform_decides_the_partitions() -> None:
    assert faults({"maxReplicas": 900, "minReplicas": 800}, partitions=None) == []
