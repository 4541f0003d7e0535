"""The rules of `spec.processor.scaling`: each fault names its field, its value and what to do."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill_contract.resource.scaling_rules import scaling_faults
from tidemill_contract.resource.spec import ScalingSpec


def faults(raw: dict[str, Any], *, partitions: int | None = 6, flush_ms: int = 500) -> list[str]:
    """Field and remedy of each."""
    spec = ScalingSpec.model_validate(raw)
    found = list(scaling_faults(spec, partitions, flush_ms=flush_ms))
    return [f"{fault.path.removeprefix('spec.processor.scaling.')}={fault.value}: {fault.remedy}" for fault in found]


@pytest.mark.parametrize(
    ("raw", "expected", "reason"),
    [
        ({}, [], "the defaults are valid"),
        ({"minReplicas": 2, "maxReplicas": 6}, [], "up to the partitions"),
        ({"maxReplicas": 7}, ["maxReplicas=7: write at most 6"], "the seventh would idle"),
        ({"minReplicas": 7}, ["minReplicas=7: write at most 6"], "the seventh would idle"),
        (
            {"minReplicas": 3, "maxReplicas": 2},
            ["minReplicas=3: lower minReplicas, or raise maxReplicas"],
            "there is no number between them",
        ),
        (
            {"minReplicas": 0},
            ["minReplicas=0: write 1, or add scaleToZeroAfter, such as 15m"],
            "nobody would ever stop the last one",
        ),
        ({"minReplicas": 0, "scaleToZeroAfter": "15m"}, [], "said"),
        ({"minReplicas": 0, "mode": "external"}, [], "somebody else's business"),
        ({"catchUp": "5s"}, ["catchUp=5s: write 10s to 1d"], "shorter than a replica's start"),
        ({"scaleUpCooldown": "2h"}, ["scaleUpCooldown=2h: write 0s to 1h"], "as good as never"),
        ({"scaleDownStabilization": "2d"}, ["scaleDownStabilization=2d: write 0s to 1d"], "what is kept is bounded"),
        (
            {"pollInterval": "500ms", "lookback": "2s"},
            ["pollInterval=500ms: write 1s to 5m"],
            "commits come that often; nothing would be seen",
        ),
        (
            {"pollInterval": "2m"},
            ["lookback=2m: make lookback at least twice as long as pollInterval"],
            "the speed of a replica needs two polls",
        ),
        ({"scaleToZeroAfter": "1s"}, ["scaleToZeroAfter=1s: write 10s to 30d"], "every pause would stop all"),
        ({"target": {"freshness": "10s"}}, [], "instead of lag"),
        (
            {"target": {"freshness": "800ms"}},
            ["target.freshness=800ms: write 1s or more, or shorten flushInterval"],
            "a commit takes 500 ms already",
        ),
    ],
)
def test_settings_that_cannot_work_are_named_with_a_remedy(
    raw: dict[str, Any], expected: list[str], reason: str
) -> None:
    assert faults(raw) == expected, reason


def test_without_partitions_the_platform_decides() -> None:
    """So no number is too high yet."""
    assert faults({"maxReplicas": 900, "minReplicas": 800}, partitions=None) == []
