"""The pattern of `spec.source.topicPattern`: which names of topics it matches, and whether its expression is valid.

Expressions are those of the Rust library regex, by polars. Matching takes linear time, whatever the expression is, so
no pattern delays the operator, which works for many pipelines.
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
    """Return what is wrong with an expression, or an empty text if it is valid."""
    if not pattern.isascii() or not pattern.isprintable() or " " in pattern:
        return "it has a character that no name of a topic has"
    for text in (pattern, _whole(pattern)):  # alone first, because `a)|(b` would be valid in parentheses
        try:
            pl.Series([""]).str.contains(text)
        except ComputeError as error:
            lines = [line.strip() for line in str(error).splitlines()]
            detail = next((line for line in lines if line.startswith("error: ")), lines[0])
            return detail.removeprefix("error: ").removeprefix("regex error: ").rstrip(".")
    return ""


def matching(pattern: str, topics: Iterable[str]) -> list[str]:
    """Return the topics whose whole name a valid pattern matches, sorted."""
    series = pl.Series(sorted(set(topics)), dtype=pl.String)
    return series.filter(series.str.contains(_whole(pattern))).to_list()


def candidates(topics: Iterable[str], *, namespace: str, limits: Names) -> list[str]:
    """Return the topics of the platform's Kafka that a pattern of a pipeline may match.

    Kafka's internal topics are left out, and all topics with a name that Tidemill gives: these have different shapes.
    """
    return [
        topic
        for topic in topics
        if not topic.startswith(_INTERNAL)
        and names.derived_topic(topic) is None
        and (limits.own(topic, namespace) or limits.readable(topic))
    ]


def candidates_elsewhere(topics: Iterable[str], outputs: Collection[str]) -> list[str]:
    """Return the topics of another cluster that a pattern may match: all but internal topics and `outputs`.

    The permissions of the login decide which topics are listed.
    """
    return [topic for topic in topics if not topic.startswith(_INTERNAL) and topic not in outputs]


def chosen(pattern: str, topics: Iterable[str], known: Sequence[str], most: int) -> tuple[list[str], list[str]]:
    """Return the topics to read, at most `most`, sorted; and the existing topics beyond that number.

    Args:
        pattern: a valid pattern.
        topics: the existing topics that the pipeline may read.
        known: the topics that the pipeline has read, whether they exist or not. They come first, so that a new topic
            never takes the place of a topic that is read.
        most: the maximum number of topics.
    """
    there = matching(pattern, topics)
    kept = matching(pattern, known)
    before = [topic for topic in there if topic in set(kept)]
    existing = [*before, *(topic for topic in there if topic not in set(kept))]
    gone = [topic for topic in kept if topic not in set(there)]
    return sorted([*existing, *gone][:most]), existing[most:]


def _whole(pattern: str) -> str:
    return rf"\A(?:{pattern})\z"
