"""Tests of topic patterns: which are valid, and which topics match."""

from __future__ import annotations

import pytest

from tidemill_contract.resource.inputs.patterns import (
    candidate_topics,
    choose_topics,
    matching_topics,
    other_cluster_candidates,
    pattern_error,
)
from tidemill_contract.resource.rules import TopicLimits


@pytest.mark.parametrize(
    ("pattern", "error"),
    [
        (r"shop\.orders\.(eu|us)", ""),
        (r"(?i)SHOP\..+", ""),
        ("(a+)+b", ""),
        ("a)|(b", "unopened group"),
        ("(a", "unclosed group"),
        ("*", "repetition operator missing expression"),
        (r"(a)\1", "backreferences are not supported"),
        ("(?=a)", "look-around, including look-ahead and look-behind, is not supported"),
        ("((a{100}){100}){100}", "Compiled regex exceeds size limit of 10485760 bytes"),
        ("(?x)a#", "unclosed group"),
        ("a\nb", "the expression has a character that is not allowed in topic names"),
        ("größe", "the expression has a character that is not allowed in topic names"),
    ],
)
def test_a_pattern_is_valid_or_refused_with_the_reason(pattern: str, error: str) -> None:
    assert pattern_error(pattern) == error


def test_a_pattern_matches_whole_names() -> None:
    names = ["shop.b", "shop.a", "shop.a.old", "my.shop.a", "shop.a"]
    assert matching_topics(r"shop\.a|shop\.b", names) == ["shop.a", "shop.b"]
    assert matching_topics("shop", names) == matching_topics(".*", []) == []


def test_a_pattern_never_backtracks() -> None:
    assert matching_topics("(.*a)*(.*b)*c" * 8, ["a" * 249] * 1000 + ["a" * n for n in range(200)]) == []


def test_only_topics_that_the_pipeline_may_read_can_match() -> None:
    names = [
        "shop.a",
        "shop.orders.results",
        "shop.orders.events",
        "__consumer_offsets",
        "crm.a",
        "other.a",
        "own.a",
    ]
    limits = TopicLimits(topic_prefixes=("own.",), readable_topics=("crm.*", "__*"))
    connect = ["shop.tidemill-connect-1a-configs", "crm.tidemill-connect-1a-offsets"]
    assert candidate_topics([*names, *connect], namespace="shop", limits=limits) == ["shop.a", "crm.a", "own.a"]
    assert other_cluster_candidates(names, ["shop.orders.results"]) == [
        "shop.a", "shop.orders.events", "crm.a", "other.a", "own.a",
    ]  # fmt: skip


def test_known_topics_take_precedence_over_new_topics_beyond_the_limit() -> None:
    assert choose_topics(".*", ["a", "b", "z"], ["z", "gone"], most=9) == (["a", "b", "gone", "z"], [])
    assert choose_topics(".*", ["a", "b", "z"], ["z", "gone"], most=3) == (["a", "b", "z"], [])
    assert choose_topics(".*", ["a", "b", "z"], ["z", "gone"], most=2) == (["a", "z"], ["b"])
    assert choose_topics("[ab]", ["a", "b", "z"], ["z"], most=2) == (["a", "b"], [])
