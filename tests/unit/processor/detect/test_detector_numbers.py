"""Tests of the numbers that detectors judge, and of the bounds that they report."""

from __future__ import annotations

import sys
from decimal import Decimal
from typing import Any

import pytest

from tidemill_contract.resource.kinds.metrics import METRICS
from tidemill_contract.windows import answer_range
from tidemill_processor.detect.detectors import Verdict, as_float

GREAT = sys.float_info.max


def test_a_number_beyond_all_floats_becomes_the_largest_float() -> None:
    """Integers in sums have no limit."""
    assert [as_float(10**400), as_float(-(10**400)), as_float(Decimal("2.5")), as_float(3)] == [GREAT, -GREAT, 2.5, 3.0]


@pytest.mark.parametrize(
    ("function", "field_type", "expected"),
    [
        ("count", None, (0.0, 0.0, 1.25)),  # Counts are never negative.
        ("distinct", "string", (0.0, 0.0, 1.25)),
        ("stddev", "number", (0.0, 0.0, 1.25)),
        ("avg", "boolean", (0.0, 0.0, 1.0)),  # The average of booleans is at most 1.
        ("sum", "boolean", (0.0, 0.0, 1.25)),
        ("avg", "number", (-0.5, -0.75, 1.25)),  # The average of numbers has no bounds.
        ("min", "number", (-0.5, -0.75, 1.25)),
    ],
)
def test_expected_values_and_bounds_are_limited_to_values_that_the_metric_can_have(
    function: Any, field_type: str | None, expected: tuple[float, float, float]
) -> None:
    metric = METRICS.make(name="m", function=function, field=None if function == "count" else "f")
    verdict = Verdict(0.9, 7.0, "warning", -0.5, -0.75, 1.25).clamped(*answer_range(metric, field_type))
    assert (verdict.expected, verdict.lower, verdict.upper) == expected
    unknown = Verdict(0.9, 7.0, "warning", None, None, None)
    assert unknown.clamped(0.0, 1.0) == unknown
