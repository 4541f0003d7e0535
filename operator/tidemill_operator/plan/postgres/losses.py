"""Write the messages about events that disappeared from Kafka before processors read the events."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.live import LiveSchema, LiveTopic, Loss

_MAX_PARTITIONS = 16
_REASONS: Mapping[str, Reason] = {
    "topic_recreated": Reason.TOPIC_RECREATED,
    "truncated": Reason.LOG_TRUNCATED,
    "expired": Reason.EVENTS_EXPIRED,
}


def loss_errors(topic: str, live_topic: LiveTopic | None, schema: LiveSchema) -> list[TidemillError]:
    """Return the recent losses, one error per reason, the most severe first.

    Args:
        topic: the source topic's name.
        live_topic: the existing topic, or None if the topic is missing. A missing topic is reported elsewhere.
        schema: the live schema, with the recorded losses.
    """
    latest: dict[tuple[Reason, int], Loss] = {}
    for loss in sorted([*schema.losses, *_unrecorded(live_topic, schema)], key=lambda loss: loss.epoch):
        if loss.reason in _REASONS:
            latest[_REASONS[loss.reason], loss.partition] = loss
    errors = []
    for reason, message in _MESSAGES.items():
        matches = [loss for (loss_reason, _), loss in sorted(latest.items()) if loss_reason == reason]
        if matches:
            errors.append(TidemillError(reason, message(topic, live_topic, _ranges(matches)), _REMEDY[reason]))
    return errors


def missed_text(losses: Collection[Loss]) -> str:
    """Return a text about events not found by a replay, or an empty text."""
    if not losses:
        return ""
    return f"events that the topic no longer holds are not counted (offsets {_ranges(losses)})"


def _unrecorded(live_topic: LiveTopic | None, schema: LiveSchema) -> Iterator[Loss]:
    """Yield a loss for each stored position, if the topic was deleted and created again."""
    if live_topic is None or not live_topic.id or not schema.topic_id or schema.topic_id == live_topic.id:
        return
    # Outdated metadata may show an earlier id of the topic. Yield no loss for an earlier id.
    if live_topic.id in schema.former_topic_ids:
        return
    for partition, offset in schema.next_offsets.items():
        yield Loss("topic_recreated", partition, 0, offset, None)


def _ranges(losses: Iterable[Loss]) -> str:
    parts = [
        f"{loss.partition}: {loss.first}" + ("" if loss.end is None else f" to {loss.end}")
        for loss in sorted(losses, key=lambda loss: loss.partition)
    ]
    more = len(parts) - _MAX_PARTITIONS
    return ", ".join(parts[:_MAX_PARTITIONS]) + (f" and {more} more partitions" if more > 0 else "")


def _recreated(topic: str, live_topic: LiveTopic | None, ranges: str) -> str:
    now = f" (id {live_topic.id} now)" if live_topic is not None and live_topic.id else ""
    return (
        f"topic {topic} was deleted and created again{now}; events of the former topic that were not counted are gone"
        f" (from offsets {ranges})"
    )


def _truncated(topic: str, _: LiveTopic | None, ranges: str) -> str:
    return f"topic {topic} ends before the last read offset, so Kafka has lost counted events (offsets {ranges})"


def _expired(topic: str, _: LiveTopic | None, ranges: str) -> str:
    return f"the retention of events in topic {topic} ended before the events were read (offsets {ranges})"


_MESSAGES: Mapping[Reason, Callable[[str, LiveTopic | None, str], str]] = {
    Reason.TOPIC_RECREATED: _recreated,
    Reason.LOG_TRUNCATED: _truncated,
    Reason.EVENTS_EXPIRED: _expired,
}
_REMEDY: Mapping[Reason, str] = {
    Reason.TOPIC_RECREATED: (
        "earlier results are kept; send the missing events again, and check who may delete topics"
    ),
    Reason.LOG_TRUNCATED: "the lost events stay counted; find out why a replica that was behind became leader",
    Reason.EVENTS_EXPIRED: "increase spec.source.topic.retention, or run more processors",
}
