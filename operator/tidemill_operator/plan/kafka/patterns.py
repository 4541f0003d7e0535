"""Find the source topics of a pipeline from a list of topics or a topic pattern."""

from __future__ import annotations

from tidemill_contract.resource.inputs.patterns import choose_topics
from tidemill_contract.resource.source import MAX_TOPICS, SourceSpec
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.live import LiveFacts
from tidemill_operator.plan.model import Plan


def select_topics(source: SourceSpec, live: LiveFacts) -> tuple[list[str], list[str]]:
    """Return the topics to read, and the matching topics that exceed the maximum number of topics."""
    if source.topic_pattern is None:
        return list(source.topics or ()), []
    slot_topics = [slot.topic for slot in live.schema.slots if slot.topic] if live.schema is not None else []
    return choose_topics(source.topic_pattern, live.pattern_candidates, slot_topics, MAX_TOPICS)


def no_match_error(plan: Plan, live: LiveFacts) -> TidemillError | None:
    """Return the error if no topic matches the pattern."""
    pattern = plan.schema.pattern
    if not pattern or plan.schema.listed_topics or live.brokers is None:
        return None
    return TidemillError(
        Reason.WAITING,
        f"spec.source.topicPattern: no topic that the pipeline may read matches {pattern} so far",
        "create a topic with a matching name, or correct the pattern, which must match the whole name",
    )


def excess_topics_error(plan: Plan) -> TidemillError | None:
    """Return the error if more topics match the pattern than a pipeline can read."""
    if not plan.excess_topics:
        return None
    unread = ", ".join(plan.excess_topics[:3]) + (", …" if len(plan.excess_topics) > 3 else "")
    return TidemillError(
        Reason.NOT_SUPPORTED,
        f"spec.source.topicPattern: {plan.schema.pattern} matches {MAX_TOPICS + len(plan.excess_topics)} topics, and a"
        f" pipeline reads at most {MAX_TOPICS}; not read: {unread}",
        "write a pattern that matches fewer topics, and a second pipeline for the others",
    )
