"""Check `spec.source.topicPattern`, and match topics with the pattern.

Polars matches patterns with the regular expressions of Rust. Matching needs only linear time for every pattern.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import polars as pl
from polars.exceptions import ComputeError

from tidemill_contract import names
from tidemill_contract.resource.inputs.topic_access import TopicAccess

MAX_CHARACTERS = 256
_INTERNAL_PREFIX = "__"


def pattern_error(pattern: str) -> str:
    """Return the error in a regular expression, or an empty string for a valid expression."""
    if not pattern.isascii() or not pattern.isprintable() or " " in pattern:
        return "the expression has a character that is not allowed in topic names"
    # Also check the pattern without `_anchor`: `a)|(b` is invalid, but `(?:a)|(b)` is valid.
    for text in (pattern, _anchor(pattern)):
        try:
            pl.Series([""]).str.contains(text)
        except ComputeError as error:
            lines = [line.strip() for line in str(error).splitlines()]
            detail = next((line for line in lines if line.startswith("error: ")), lines[0])
            return detail.removeprefix("error: ").removeprefix("regex error: ").rstrip(".")
    return ""


def matching_topics(pattern: str, topics: Iterable[str]) -> list[str]:
    """Return the topics whose whole name matches, sorted. The pattern must be valid."""
    series = pl.Series(sorted(set(topics)), dtype=pl.String)
    return series.filter(series.str.contains(_anchor(pattern))).to_list()


def candidate_topics(topics: Iterable[str], *, namespace: str, limits: TopicAccess) -> list[str]:
    """Return the topics of the platform's Kafka cluster that patterns are allowed to match.

    Kafka's internal topics, and topics that Tidemill names (such as `shop.orders.events`), are left out.
    """
    return [
        topic
        for topic in topics
        if not topic.startswith(_INTERNAL_PREFIX)
        and names.parse_topic(topic) is None
        and (limits.may_manage(topic, namespace) or limits.may_read(topic))
    ]


def other_cluster_candidates(topics: Iterable[str], outputs: Collection[str]) -> list[str]:
    """Return those topics of another Kafka cluster that patterns are allowed to match.

    Kafka's internal topics, and the pipeline's output topics (`outputs`), are left out.
    """
    return [topic for topic in topics if not topic.startswith(_INTERNAL_PREFIX) and topic not in outputs]


def choose_topics(
    pattern: str, topics: Iterable[str], previous: Sequence[str], most: int
) -> tuple[list[str], list[str]]:
    """Return the topics to read (at most `most`), and the matching topics beyond this limit.

    Topics that the pipeline has read before (`previous`) take precedence over new topics.
    """
    matching = matching_topics(pattern, topics)
    previous_matching = matching_topics(pattern, previous)
    known = [topic for topic in matching if topic in set(previous_matching)]
    existing = [*known, *(topic for topic in matching if topic not in set(previous_matching))]
    missing = [topic for topic in previous_matching if topic not in set(matching)]
    return sorted([*existing, *missing][:most]), existing[most:]


def _anchor(pattern: str) -> str:
    return rf"\A(?:{pattern})\z"
