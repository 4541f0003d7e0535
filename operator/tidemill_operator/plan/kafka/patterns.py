"""Find the source topics of a pipeline from a list of topics or a topic pattern."""

from __future__ import annotations

from tidemill_contract.resource.inputs.patterns import chosen
from tidemill_contract.resource.source import MOST_TOPICS, SourceSpec
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.live import LiveFacts
from tidemill_operator.plan.model import Plan


def topics_of(source: SourceSpec, live: LiveFacts) -> tuple[list[str], list[str]]:
    """Return the topics to read, and the matching topics that exceed the maximum number of topics."""
    if source.topic_pattern is None:
        return list(source.topics or ()), []
    slot_topics = [slot.topic for slot in live.schema.slots if slot.topic] if live.schema is not None else []
    return chosen(source.topic_pattern, live.found, slot_topics, MOST_TOPICS)


def unmatched(plan: Plan, live: LiveFacts) -> TidemillError | None:
    """Return the error if no topic matches the pattern."""
    pattern = plan.schema.pattern
    if not pattern or plan.schema.listed or live.brokers is None:
        return None
    return TidemillError(
        Reason.WAITING,
        f"spec.source.topicPattern: no topic that the pipeline may read matches {pattern} so far",
        "create a topic with a matching name, or correct the pattern, which must match the whole name",
    )


def too_many(plan: Plan) -> TidemillError | None:
    """Return the error if more topics match the pattern than a pipeline can read."""
    if not plan.unread:
        return None
    left = ", ".join(plan.unread[:3]) + (", …" if len(plan.unread) > 3 else "")
    return TidemillError(
        Reason.NOT_SUPPORTED,
        f"spec.source.topicPattern: {plan.schema.pattern} matches {MOST_TOPICS + len(plan.unread)} topics, and a"
        f" pipeline reads at most {MOST_TOPICS}; not read: {left}",
        "write a pattern that matches fewer topics, and a second pipeline for the others",
    )
