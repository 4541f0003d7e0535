"""Assign a slot number to each partition of a list of topics."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from tidemill_operator.plan.live import LiveFacts, LiveSchema, Slot


def desired_slots(
    topics: Sequence[str], live: LiveFacts, former: str, *, certain: Collection[str] = ()
) -> tuple[Slot, ...]:
    """Return the slots of a pipeline, including slots for new partitions.

    A slot gives a topic's partition a number that is unique within the pipeline.

    Args:
        topics: topics in the spec.
        live: the live state.
        former: topic that the pipeline read before its spec had several topics, or empty.
        certain: topics whose absence from the live state proves their deletion.
    """
    schema = live.schema or LiveSchema()
    slots = {(slot.topic, slot.partition): slot for slot in known_slots(schema, former)}
    deleted = set(range(schema.partitions)) - {slot.number for slot in slots.values()}
    slots |= {("", number): Slot(number, "", number, reading=False) for number in sorted(deleted)}
    next_slot = max([schema.partitions, *(slot.number + 1 for slot in slots.values())])
    for topic in topics:
        live_topic = live.topics.get(topic)
        for partition in range(live_topic.partitions if live_topic else 0):
            if (topic, partition) not in slots:
                slots[topic, partition] = Slot(next_slot, topic, partition, added=schema.partitions > 0)
                next_slot += 1
    if live.brokers is None:
        return tuple(slots.values())
    return tuple(
        replace(slot, reading=slot.topic in topics and _is_read(slot, live, schema, certain)) for slot in slots.values()
    )


def _is_read(slot: Slot, live: LiveFacts, schema: LiveSchema, certain: Collection[str]) -> bool:
    live_topic = live.topics.get(slot.topic)
    if live_topic is None:
        return slot.reading and slot.topic not in certain
    if slot.partition < live_topic.partitions:
        return True
    # Outdated metadata may omit partitions. Only a new id of the topic proves that a partition is gone.
    ids = {slot.topic_id or restrict_to_topic(schema, slot.topic).topic_id, *schema.former_topic_ids} - {""}
    return slot.reading and live_topic.id in ids


def topics_in_use(slots: Iterable[Slot]) -> frozenset[str]:
    """Return the topics whose partitions the pipeline reads."""
    return frozenset(slot.topic for slot in slots if slot.reading)


def single_topic(schema: LiveSchema | None, default: str) -> str:
    """Return the topic of the accepted spec, or an empty text if the spec has several topics."""
    source = (schema.accepted or {}).get("source", {}) if schema is not None else {}
    if not source or source.get("topics") is not None or source.get("topicPattern") is not None:
        return ""
    name: str = source.get("topic", {}).get("name") or default
    return name


def known_slots(schema: LiveSchema, former: str) -> tuple[Slot, ...]:
    """Return the slots of a live schema.

    If the schema has no slots, return a slot for each partition of the topic `former`.
    """
    if schema.slots or not former:
        return schema.slots
    offsets = schema.next_offsets
    return tuple(
        Slot(p, former, p, topic_id=schema.topic_id if p in offsets else "", next_offset=offsets.get(p))
        for p in range(schema.partitions)
    )


def restrict_to_topic(schema: LiveSchema, topic: str) -> LiveSchema:
    """Return a copy of the schema that has only the positions and losses of `topic`."""
    slots = {slot.number: slot for slot in schema.slots if slot.topic == topic}
    ids = {slot.topic_id for slot in slots.values() if slot.topic_id}
    return replace(
        schema,
        topic_id=max(ids - schema.former_topic_ids or ids, default=""),
        next_offsets={s.partition: s.next_offset for s in slots.values() if s.next_offset is not None and s.topic_id},
        losses=tuple(
            replace(loss, partition=slots[loss.partition].partition)
            for loss in schema.losses
            if loss.partition in slots
        ),
    )
