"""Tests of the numbers that detectors take, and of the bounds that they give."""

from __future__ import annotations

import sys
from decimal import Decimal
from typing import Any

import pytest

from tidemill_contract.resource.kinds.metrics import METRICS
from tidemill_contract.windows import answer_range
from tidemill_processor.detect.detectors import Verdict, number

GREAT = sys.float_info.max


def test_an_integer_beyond_all_floats_is_the_greatest_of_them() -> None:
    """Sums of integers have no bound."""
    assert [number(10**400), number(-(10**400)), number(Decimal("2.5")), number(3)] == [GREAT, -GREAT, 2.5, 3.0]


@pytest.mark.parametrize(
    ("function", "field_type", "expected"),
    [
        ("count", None, (0.0, 0.0, 1.25)),  # there are no fewer than none
        ("distinct", "string", (0.0, 0.0, 1.25)),
        ("stddev", "number", (0.0, 0.0, 1.25)),
        ("avg", "boolean", (0.0, 0.0, 1.0)),  # a share of all is at most all
        ("sum", "boolean", (0.0, 0.0, 1.25)),
        ("avg", "number", (-0.5, -0.75, 1.25)),  # may be anything
        ("min", "number", (-0.5, -0.75, 1.25)),
    ],
)
def test_nothing_is_expected_that_a_metric_cannot_be(
    function: Any, field_type: str | None, expected: tuple[float, float, float]
) -> None:
    metric = METRICS.make(name="m", function=function, field=None if function == "count" else "f")
    verdict = Verdict(0.9, 7.0, "warning", -0.5, -0.75, 1.25).within(*answer_range(metric, field_type))
    assert (verdict.expected, verdict.lower, verdict.upper) == expected
    unknown = Verdict(0.9, 7.0, "warning", None, None, None)
    assert unknown.within(0.0, 1.0) == unknown
