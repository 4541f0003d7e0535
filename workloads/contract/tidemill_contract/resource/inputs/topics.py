"""The rules of `spec.source.topics` and `spec.source.topicPattern`."""

from __future__ import annotations

from collections.abc import Iterator

from tidemill_contract import names
from tidemill_contract.resource.faults import ABSENT, Fault
from tidemill_contract.resource.inputs.patterns import MAX_CHARACTERS, pattern_error
from tidemill_contract.resource.inputs.topic_access import TopicAccess
from tidemill_contract.resource.parts import Parts

CONNECT_TOPIC_MESSAGE = "the topic belongs to Kafka Connect workers"
READABLE_TOPICS_SETTING = "TIDEMILL_READABLE_TOPICS (chart: defaults.readableTopics)"
_PATH, _PATTERN = "spec.source.topics", "spec.source.topicPattern"


def topics_faults(parts: Parts, _columns: object, limits: TopicAccess) -> Iterator[Fault]:
    """Yield a fault for each broken rule about a list or a pattern of topics."""
    if not parts.is_multi_topic:
        return
    yield from _single_topic_faults(parts)
    yield from _pattern_faults(parts)
    yield from _list_faults(parts, limits)
    yield from _writer_faults(parts)


def _pattern_faults(parts: Parts) -> Iterator[Fault]:
    pattern = parts.topic_pattern
    if pattern is None:
        return
    if parts.topics is not None:
        yield Fault(_PATTERN, pattern, "the pipeline already has a list of topics", "remove topics or topicPattern")
    elif 0 < len(pattern) <= MAX_CHARACTERS and (error := pattern_error(pattern)):
        remedy = r"write an expression for whole topic names, such as shop\.orders\..*"
        yield Fault(_PATTERN, pattern, f"is not a regular expression: {error}", remedy)


def _list_faults(parts: Parts, limits: TopicAccess) -> Iterator[Fault]:
    first_paths: dict[str, str] = {}
    for index, topic in enumerate(parts.topics or ()):
        path = f"{_PATH}[{index}]"
        if topic in first_paths:
            yield Fault(
                path,
                topic,
                f"the topic is listed twice, first at {first_paths[topic]}",
                "remove one of the two entries",
            )
        elif topic.strip(".") == "":
            yield Fault(path, topic, "Kafka does not allow this name", "use a name with letters or digits")
        else:
            yield from _access_faults(topic, path, parts, limits)
        first_paths.setdefault(topic, path)


def _single_topic_faults(parts: Parts) -> Iterator[Fault]:
    topic, path = parts.topic, "spec.source.topic"
    member, what = (_PATH, "list") if parts.topics is not None else (_PATTERN, "pattern")
    if topic is None:
        return
    if topic.name is not None:
        message = f"the pipeline has a {what} of topics"
        yield Fault(f"{path}.name", topic.name, message, f"move the name to {member}, or remove {member}")
    if topic.managed:
        message = f"Tidemill does not create or alter the topics of a {what}"
        yield Fault(f"{path}.managed", True, message, "write managed: false")
    if topic.partitions is not None:
        message = f"the topics of a {what} may have different numbers of partitions"
        yield Fault(f"{path}.partitions", topic.partitions, message, "remove partitions")


def _access_faults(topic: str, path: str, parts: Parts, limits: TopicAccess) -> Iterator[Fault]:
    if parts.has_other_cluster:
        if topic in (names.topic(parts.namespace, parts.name or "", kind) for kind in names.OUTPUT_TOPICS):
            message = "this pipeline writes its output to a topic of the same name on the platform's own Kafka"
            yield Fault(path, topic, message, "give the pipeline another name")
    elif names.is_connect_topic(topic):
        yield Fault(path, topic, CONNECT_TOPIC_MESSAGE, "remove the topic")
    elif not limits.may_manage(topic, parts.namespace) and not limits.may_read(topic):
        remedy = f"add the topic to the platform's list of readable topics, {READABLE_TOPICS_SETTING}"
        yield Fault(path, topic, "the topic belongs to another namespace", remedy)


def _writer_faults(parts: Parts) -> Iterator[Fault]:
    path, what = (_PATH, "list") if parts.topics is not None else (_PATTERN, "pattern")
    writers = {"connectors": parts.connectors, "mqtt": parts.mqtt, "webhooks": parts.webhooks}
    for member, given in writers.items():
        if given:
            message = f"Tidemill does not write to the topics of a {what}, but {member} needs a topic to write to"
            yield Fault(f"spec.source.{member}", ABSENT, message, f"remove {member}, or use a single topic")
    if parts.python is not None:
        message = "the Python stage reads only one topic"
        yield Fault("spec.transform.python", ABSENT, message, f"remove spec.transform.python or {path}")
