"""The number of replicas is aligned to the partitions, and both sides share partitions out in the same way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tidemill_operator.scaling.model import Need
from tidemill_operator.scaling.need import aligned, fits, shares
from tidemill_processor.source.consumer import CONSUMER_TUNING


@pytest.mark.parametrize(
    ("need", "expected", "reason"),
    [
        (1, 1, "even"),
        (2, 2, "even"),
        (4, 4, "even"),
        (5, 6, "5 of 12 are as slow as 4, too slow for it; 6 are not"),
        (7, 12, "the next that has a smaller bottleneck"),
        (12, 12, "one each"),
    ],
)
def test_alignment_of_even_lag(need: int, expected: int, reason: str) -> None:
    """Twelve partitions, lag spread evenly."""
    wanted = Need(need, need, by_lag=(need / 12,) * 12)
    assert aligned(wanted, floor=1, ceiling=12, partitions=12) == expected, reason


def test_alignment_uses_the_band() -> None:
    """6.5 replicas' worth at 70 % are carried by 6 at 76 %, so a twelfth is not needed."""
    wanted = Need(7, 7, by_rate=(6.5 / 12,) * 12)
    assert aligned(wanted, floor=1, ceiling=12, partitions=12) == 6
    assert aligned(replace(wanted, by_rate=(7.4 / 12,) * 12), floor=1, ceiling=12, partitions=12) == 12
    assert aligned(replace(wanted, by_rate=(7.4 / 12,) * 12), floor=1, ceiling=9, partitions=12) == 7


def test_alignment_of_uneven_load() -> None:
    """A hot partition is given fewer neighbours, but not for more than twice what is needed in all."""
    hot = Need(3, 3, by_rate=(1.0, *(0.16,) * 11))
    assert not fits(hot, 4)
    assert aligned(hot, floor=1, ceiling=12, partitions=12) == 6
    assert aligned(replace(hot, by_rate=(1.0, *(0.3,) * 11)), floor=1, ceiling=12, partitions=12) == 3


def test_shares_are_kafkas_ranges() -> None:
    """The first ones get one more."""
    assert shares(range(7), 3) == [range(3), range(3, 5), range(5, 7)]
    assert shares(range(2), 3) == [range(1), range(1, 2)]


def test_processors_share_partitions_out_as_scaling_reckons() -> None:
    """Blocks of neighbours are the range assignment's; another one would make the speed of a replica wrong."""
    assert CONSUMER_TUNING["partition.assignment.strategy"] == "range"
