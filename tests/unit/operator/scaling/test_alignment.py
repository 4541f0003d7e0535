"""Tests of aligning the number of replicas to partitions, and of the shares of partitions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tidemill_operator.scaling.model import Need
from tidemill_operator.scaling.need import assign_partitions, fits, fitting_replicas
from tidemill_processor.source.consumer import CONSUMER_TUNING


@pytest.mark.parametrize(
    ("need", "expected", "reason"),
    [
        (1, 1, "divides 12"),
        (2, 2, "divides 12"),
        (4, 4, "divides 12"),
        (5, 6, "5 replicas are as slow as 4; 6 are faster"),
        (7, 12, "12 is the next number with a smaller largest share"),
        (12, 12, "one partition each"),
    ],
)
def test_even_lag_gets_the_next_number_with_a_smaller_largest_share(need: int, expected: int, reason: str) -> None:
    """The lag of twelve partitions is spread evenly."""
    wanted = Need(need, need, by_lag=(need / 12,) * 12)
    assert fitting_replicas(wanted, floor=1, ceiling=12, partitions=12) == expected, reason


def test_alignment_adds_no_replicas_within_the_band() -> None:
    """6 replicas at 76 % use carry a load of 6.5 replicas at 70 %. 12 replicas are not needed."""
    wanted = Need(7, 7, by_rate=(6.5 / 12,) * 12)
    assert fitting_replicas(wanted, floor=1, ceiling=12, partitions=12) == 6
    assert fitting_replicas(replace(wanted, by_rate=(7.4 / 12,) * 12), floor=1, ceiling=12, partitions=12) == 12
    assert fitting_replicas(replace(wanted, by_rate=(7.4 / 12,) * 12), floor=1, ceiling=9, partitions=12) == 7


def test_a_hot_partition_gets_fewer_neighbours() -> None:
    """More replicas give a hot partition fewer neighbours. Alignment at most doubles the needed number for that."""
    hot = Need(3, 3, by_rate=(1.0, *(0.16,) * 11))
    assert not fits(hot, 4)
    assert fitting_replicas(hot, floor=1, ceiling=12, partitions=12) == 6
    assert fitting_replicas(replace(hot, by_rate=(1.0, *(0.3,) * 11)), floor=1, ceiling=12, partitions=12) == 3


def test_shares_equal_the_range_assignment_of_kafka() -> None:
    """Each of the first replicas gets one partition more."""
    assert assign_partitions(range(7), 3) == [range(3), range(3, 5), range(5, 7)]
    assert assign_partitions(range(2), 3) == [range(1), range(1, 2)]


def test_processors_use_the_range_assignment() -> None:
    """Scaling assumes blocks of neighbouring partitions, as the range assignment gives them."""
    assert CONSUMER_TUNING["partition.assignment.strategy"] == "range"
