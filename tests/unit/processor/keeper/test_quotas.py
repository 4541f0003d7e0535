"""Tests of quotas: which dead letters are stored, which are only counted, and how the status reports this."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill_contract.resource.amounts import parse_bytes
from tidemill_contract.tables.quotas import ANOMALIES, DEAD_LETTERS, QuotaUsage, quota_message
from tidemill_processor.dead_letters import DeadLetter
from tidemill_processor.keeper.quotas import LETTER_BYTES, MAX_BATCH_VALUES, fit_into_quota

AMOUNTS = [
    ("0", 0), ("512", 512), ("1k", 1_000), ("1Ki", 1_024), ("1.5Mi", 1_572_864), ("2G", 2_000_000_000),
    ("1Gi", 1_073_741_824),
]  # fmt: skip


@pytest.mark.parametrize(("text", "number"), AMOUNTS)
def test_an_amount_is_parsed_to_bytes(text: str, number: int) -> None:
    assert parse_bytes(text) == number


@pytest.mark.parametrize("text", ["", "-1", "1GB", "Gi", "1 Gi", "1e3", "1Ti", "\u0661k"])
def test_a_text_that_is_no_amount_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="such as 512Mi or 1Gi"):
        parse_bytes(text)


def letter(offset: int, value: bytes | None, *, partition: int = 0, key: bytes | None = None) -> DeadLetter:
    size = len(value or b"")
    return DeadLetter(partition, offset, "not_json", detail="bad", key=key, value=value, value_bytes=size)


def test_all_dead_letters_are_stored_unchanged_if_they_fit() -> None:
    letters = [letter(number, b"x" * number) for number in range(10)]
    fitted = fit_into_quota(letters, room=1_000_000, spare=0)
    assert [kept for kept, _ in fitted.stored] == letters
    assert (fitted.bare, fitted.counted, fitted.full) == ({}, {}, False)


def test_dead_letters_beyond_the_quota_lose_their_values_and_then_are_only_counted() -> None:
    letters = [letter(number, b"x" * 1_000, key=b"k" * 2_000) for number in range(9)]
    fitted = fit_into_quota(letters, room=2 * LETTER_BYTES + 7_000, spare=600)
    assert [len(kept.value or b"") for kept, _ in fitted.stored] == [1_000, 1_000, 0, 0, 0, 0]
    assert {kept.detail for kept, _ in fitted.stored[2:]} == {"bad (value left out: spec.deadLetters.quota is used up)"}
    assert [(kept.key, kept.value_bytes) for kept, _ in fitted.stored[2:]] == [(None, 1_000)] * 4
    assert (fitted.bare, fitted.counted, fitted.full) == ({0: 4}, {0: 3}, True)


def test_a_batch_stores_a_bounded_number_of_bytes_of_values_under_any_quota() -> None:
    """A small compressed body may contain thousands of invalid events."""
    number = MAX_BATCH_VALUES // 65_536
    fitted = fit_into_quota([letter(at, b"x" * 65_536) for at in range(number + 5)], room=10**12, spare=0)
    assert sum(len(kept.value or b"") for kept, _ in fitted.stored) == MAX_BATCH_VALUES
    assert (fitted.bare, fitted.counted, fitted.full) == ({0: 5}, {}, False)
    assert fitted.stored[-1][0].detail == f"bad (value left out: a batch keeps {MAX_BATCH_VALUES} bytes of values)"


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5_000), st.integers(0, 3_000)), max_size=60),
    st.integers(-10_000, 100_000),
    st.integers(0, 20_000),
)
def test_each_dead_letter_is_stored_or_counted_within_the_quota(
    drawn: list[tuple[int, int, int]], room: int, spare: int
) -> None:
    letters = [
        letter(at, b"v" * value, partition=partition, key=b"k" * key)
        for at, (partition, value, key) in enumerate(drawn)
    ]
    fitted = fit_into_quota(letters, room, spare)
    assert len(fitted.stored) + fitted.counted.total() == len(letters)
    assert fitted.bare.total() == sum(kept.value is None for kept, _ in fitted.stored)
    assert sum(size for _, size in fitted.stored) <= max(0, room + spare)
    assert fitted.full == bool(fitted.bare or fitted.counted)
    for partition in range(4):
        of_partition = [kept for kept, _ in fitted.stored if kept.partition == partition]
        assert len(of_partition) + fitted.counted[partition] == sum(p == partition for p, _, _ in drawn)


def test_the_status_reports_losses_by_the_quota_and_the_remedy() -> None:
    kept = QuotaUsage(DEAD_LETTERS, 10, bare=5, counted=12_345, expired=3, evicted=0, full=True)
    assert quota_message(kept, "1Gi") == (
        "spec.deadLetters.quota of 1Gi is used up: of the dead letters so far 12,345 were only counted, 5 kept without"
        " value",
        "correct the senders of the refused events, or raise the quota",
    )
    text, _ = quota_message(QuotaUsage(ANOMALIES, 10, bare=0, counted=0, expired=3, evicted=7, full=True), "2Mi")
    assert text == "spec.anomalyHistory.quota of 2Mi is used up: of the anomalies so far 7 removed early"


def test_the_status_reports_no_losses_if_the_quota_is_not_full() -> None:
    assert quota_message(QuotaUsage(DEAD_LETTERS, 10, bare=5, counted=1, expired=3, evicted=0, full=False), "1Gi") == (
        "",
        "",
    )
