"""The rules of `spec.source.topics` and `spec.source.topicPattern`."""

from __future__ import annotations

from collections.abc import Iterator

from tidemill_contract import names
from tidemill_contract.resource.faults import ABSENT, Fault
from tidemill_contract.resource.inputs.limits import Names
from tidemill_contract.resource.inputs.patterns import MOST_CHARACTERS, pattern_error
from tidemill_contract.resource.parts import Parts

OF_CONNECT_WORKERS = "the topic belongs to Kafka Connect workers"
READABLE = "TIDEMILL_READABLE_TOPICS (chart: defaults.readableTopics)"
_PATH, _PATTERN = "spec.source.topics", "spec.source.topicPattern"


def topics_faults(parts: Parts, _columns: object, limits: Names) -> Iterator[Fault]:
    """Yield a fault for each broken rule about a list or a pattern of topics."""
    if not parts.several:
        return
    yield from _beside(parts)
    yield from _pattern(parts)
    yield from _listed(parts, limits)
    yield from _writers(parts)


def _pattern(parts: Parts) -> Iterator[Fault]:
    pattern = parts.topic_pattern
    if pattern is None:
        return
    if parts.topics is not None:
        yield Fault(_PATTERN, pattern, "the pipeline already has a list of topics", "remove topics or topicPattern")
    elif 0 < len(pattern) <= MOST_CHARACTERS and (error := pattern_error(pattern)):
        remedy = r"write an expression for whole topic names, such as shop\.orders\..*"
        yield Fault(_PATTERN, pattern, f"is not a regular expression: {error}", remedy)


def _listed(parts: Parts, limits: Names) -> Iterator[Fault]:
    seen: dict[str, str] = {}
    for index, topic in enumerate(parts.topics or ()):
        path = f"{_PATH}[{index}]"
        if topic in seen:
            yield Fault(
                path, topic, f"the topic is listed twice, first at {seen[topic]}", "remove one of the two entries"
            )
        elif topic.strip(".") == "":
            yield Fault(path, topic, "Kafka does not allow this name", "use a name with letters or digits")
        else:
            yield from _readable(topic, path, parts, limits)
        seen.setdefault(topic, path)


def _beside(parts: Parts) -> Iterator[Fault]:
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


def _readable(topic: str, path: str, parts: Parts, limits: Names) -> Iterator[Fault]:
    if parts.elsewhere:
        if topic in (names.topic(parts.namespace, parts.name or "", kind) for kind in names.OUTPUT_TOPICS):
            message = "this pipeline writes its output to a topic of the same name on the platform's own Kafka"
            yield Fault(path, topic, message, "give the pipeline another name")
    elif names.of_connect_workers(topic):
        yield Fault(path, topic, OF_CONNECT_WORKERS, "remove the topic")
    elif not limits.own(topic, parts.namespace) and not limits.readable(topic):
        remedy = f"add the topic to the platform's list of readable topics, {READABLE}"
        yield Fault(path, topic, "the topic belongs to another namespace", remedy)


def _writers(parts: Parts) -> Iterator[Fault]:
    path, what = (_PATH, "list") if parts.topics is not None else (_PATTERN, "pattern")
    source = {"connectors": parts.connectors, "mqtt": parts.mqtt, "webhooks": parts.webhooks}
    for member, given in source.items():
        if given:
            message = f"Tidemill does not write to the topics of a {what}, but {member} needs a topic to write to"
            yield Fault(f"spec.source.{member}", ABSENT, message, f"remove {member}, or use a single topic")
    if parts.python is not None:
        message = "the Python stage reads only one topic"
        yield Fault("spec.transform.python", ABSENT, message, f"remove spec.transform.python or {path}")
