"""Check `spec.source.topicPattern`, and match topics with the pattern.

Polars matches patterns with the regular expressions of Rust. Matching needs only linear time for every pattern.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import polars as pl
from polars.exceptions import ComputeError

from tidemill_contract import names
from tidemill_contract.resource.inputs.limits import Names

MOST_CHARACTERS = 256
_INTERNAL = "__"


def pattern_error(pattern: str) -> str:
    """Return the error in a regular expression, or an empty string for a valid expression."""
    if not pattern.isascii() or not pattern.isprintable() or " " in pattern:
        return "the expression has a character that is not allowed in topic names"
    # Also check the pattern without `_whole`: `a)|(b` is invalid, but `(?:a)|(b)` is valid.
    for text in (pattern, _whole(pattern)):
        try:
            pl.Series([""]).str.contains(text)
        except ComputeError as error:
            lines = [line.strip() for line in str(error).splitlines()]
            detail = next((line for line in lines if line.startswith("error: ")), lines[0])
            return detail.removeprefix("error: ").removeprefix("regex error: ").rstrip(".")
    return ""


def matching(pattern: str, topics: Iterable[str]) -> list[str]:
    """Return the topics whose whole name matches, sorted. The pattern must be valid."""
    series = pl.Series(sorted(set(topics)), dtype=pl.String)
    return series.filter(series.str.contains(_whole(pattern))).to_list()


def candidates(topics: Iterable[str], *, namespace: str, limits: Names) -> list[str]:
    """Return the topics of the platform's Kafka cluster that patterns are allowed to match.

    Kafka's internal topics, and topics that Tidemill names (such as `shop.orders.events`), are left out.
    """
    return [
        topic
        for topic in topics
        if not topic.startswith(_INTERNAL)
        and names.derived_topic(topic) is None
        and (limits.own(topic, namespace) or limits.readable(topic))
    ]


def candidates_elsewhere(topics: Iterable[str], outputs: Collection[str]) -> list[str]:
    """Return those topics of another Kafka cluster that patterns are allowed to match.

    Kafka's internal topics, and the pipeline's output topics (`outputs`), are left out.
    """
    return [topic for topic in topics if not topic.startswith(_INTERNAL) and topic not in outputs]


def chosen(pattern: str, topics: Iterable[str], previous: Sequence[str], most: int) -> tuple[list[str], list[str]]:
    """Return the topics to read (at most `most`), and the matching topics beyond this limit.

    Topics that the pipeline has read before (`previous`) take precedence over new topics.
    """
    there = matching(pattern, topics)
    kept = matching(pattern, previous)
    before = [topic for topic in there if topic in set(kept)]
    existing = [*before, *(topic for topic in there if topic not in set(kept))]
    gone = [topic for topic in kept if topic not in set(there)]
    return sorted([*existing, *gone][:most]), existing[most:]


def _whole(pattern: str) -> str:
    return rf"\A(?:{pattern})\z"
