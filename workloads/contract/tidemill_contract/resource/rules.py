"""The rules that involve several fields of a resource: names, references, types, windows, limits.

Rules skip the invalid parts of a document, because other checks report these parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from tidemill_contract import names
from tidemill_contract.decimals import DECIMAL, base_type
from tidemill_contract.duration import min_length_ms, parse_ms
from tidemill_contract.events.timestamps import check_zone
from tidemill_contract.resource.connectors.rules import connector_faults
from tidemill_contract.resource.faults import ABSENT, Fault, did_you_mean
from tidemill_contract.resource.field_rules import field_faults
from tidemill_contract.resource.format_rules import format_faults
from tidemill_contract.resource.inputs.rules import input_faults
from tidemill_contract.resource.inputs.topics import CONNECT_TOPIC_MESSAGE, READABLE_TOPICS_SETTING, topics_faults
from tidemill_contract.resource.kinds.base import Model
from tidemill_contract.resource.kinds.detectors import DETECTORS
from tidemill_contract.resource.kinds.windows import MIN_WINDOW_MS, WINDOWS, Window
from tidemill_contract.resource.lookups.rules import lookup_faults, lookup_names, lookup_types
from tidemill_contract.resource.metric_rules import Columns, answer_types, expression_type, metric_faults
from tidemill_contract.resource.name_rules import system_column_faults
from tidemill_contract.resource.parts import AggregationPart, Parts
from tidemill_contract.resource.retention_rules import retention_faults
from tidemill_contract.resource.scaling_rules import scaling_faults
from tidemill_contract.resource.source import TopicSpec
from tidemill_contract.resource.spec import AnomalySpec
from tidemill_contract.resource.transforms.python_rules import python_faults
from tidemill_contract.times import read_start

RESERVED_COLUMNS = ("window_start", "window_end", "closed")
_WATCHABLE_TYPES = ("integer", "number", DECIMAL)
_PLATFORM_CONFIGS = {
    "retention.ms": "set spec.source.topic.retention",
    "message.timestamp.type": "remove this config: with CreateTime, Kafka would delete old events at once",
    "message.timestamp.before.max.ms": "remove this config; Tidemill accepts events of any age",
    "message.timestamp.after.max.ms": "remove this config; use spec.source.eventTime.maxFuture",
    "message.timestamp.difference.max.ms": "remove this config; use spec.source.eventTime.maxFuture",
    "cleanup.policy": "remove this config; compaction would delete events",
}


@dataclass(frozen=True)
class TopicLimits:
    """The allowed source topics of pipelines, besides the topics with the prefix `<namespace>.`.

    Attributes:
        topic_prefixes: prefixes of topics that pipelines may manage.
        readable_topics: patterns of topics that pipelines may only read, such as `crm.*`.
    """

    topic_prefixes: tuple[str, ...] = ()
    readable_topics: tuple[str, ...] = ()

    def may_manage(self, topic: str, namespace: str) -> bool:
        """Return whether pipelines in a namespace may manage a topic."""
        return not names.is_connect_topic(topic) and topic.startswith((f"{namespace}.", *self.topic_prefixes))

    def may_read(self, topic: str) -> bool:
        """Return whether all pipelines may read a topic.

        Wildcards in `readable_topics` do not match the output topics of pipelines. Topics of Kafka Connect workers are
        never readable.
        """
        if names.is_connect_topic(topic):
            return False
        parsed = names.parse_topic(topic)
        if parsed is not None and parsed[2] in names.OUTPUT_TOPICS:
            return topic in self.readable_topics
        return any(fnmatchcase(topic, pattern) for pattern in self.readable_topics)


def check_rules(parts: Parts, limits: TopicLimits) -> list[Fault]:
    """Return all faults that involve several fields, in the order of the document's sections."""
    columns, faults = _read_columns(parts)
    for rule in RULES:
        faults += rule(parts, columns, limits)
    return faults


def _read_columns(parts: Parts) -> tuple[Columns, list[Fault]]:
    types: dict[str, str | None] = {}
    for field in parts.fields:
        if field.name is not None:
            field_kind = field.model.kind if field.model else None
            types.setdefault(field.name, None if field_kind == DECIMAL else field_kind)
    for name, looked_up in lookup_types(parts.lookups).items():
        types.setdefault(name, looked_up)
    faults = []
    names_known = bool(parts.fields) and all(field.name is not None for field in parts.fields)
    names_known = names_known and all(lookup.model is not None for lookup in parts.lookups)
    for derive in parts.derives:
        kind: str | None = None
        if derive.model is not None:
            path = f"{derive.path}.expression"
            kind, fault = expression_type(path, derive.model.expression, Columns(types, names_known), as_filter=False)
            faults += [fault] if fault else []
        if derive.name is not None:
            types.setdefault(derive.name, kind)
        else:
            names_known = False
    columns = Columns(types, names_known)
    if parts.filter is not None and 0 < len(parts.filter) <= 1024:
        _, fault = expression_type("spec.transform.filter", parts.filter, columns, as_filter=True)
        faults += [fault] if fault else []
    return columns, faults


def _duplicate_faults(items: Sequence[tuple[str, str | None]], what: str) -> Iterator[Fault]:
    first_paths: dict[str, str] = {}
    for path, name in items:
        if name is None:
            continue
        if name in first_paths:
            message = f"the {what} is listed twice, first at {first_paths[name]}"
            yield Fault(path, name, message, f"give each {what} a different name")
        first_paths.setdefault(name, path)


def _name_faults(parts: Parts, _columns: Columns, _limits: TopicLimits) -> Iterator[Fault]:
    columns = [(f"{f.path}.name", f.name) for f in parts.fields] + lookup_names(parts.lookups)
    columns += [(f"{d.path}.name", d.name) for d in parts.derives]
    yield from _duplicate_faults(columns, "column")
    yield from _duplicate_faults([(f"{lookup.path}.name", lookup.name) for lookup in parts.lookups], "lookup")
    for path, name in columns:
        if name in RESERVED_COLUMNS:
            yield Fault(
                path, name, "the name is reserved", "choose another name; query results have a column of this name"
            )
    yield from _duplicate_faults([(f"{a.path}.name", a.name) for a in parts.aggregations], "aggregation")
    yield from _duplicate_faults([(f"{a.path}.name", a.name) for a in parts.anomalies], "anomaly rule")
    for aggregation in parts.aggregations:
        yield from _duplicate_faults(aggregation.group_by, "group column")
        yield from system_column_faults(aggregation.group_by)
        metrics = [(f"{metric.path}.name", metric.name) for metric in aggregation.metrics]
        yield from _duplicate_faults(metrics, "metric")
        groups = {name for _, name in aggregation.group_by}
        for path, name in metrics:
            if name in RESERVED_COLUMNS:
                yield Fault(
                    path, name, "the name is reserved", "choose another name; query results have a column of this name"
                )
            if name in groups:
                yield Fault(path, name, "the metric is named like a group column", "rename the metric")


def _topic_faults(parts: Parts, _columns: Columns, limits: TopicLimits) -> Iterator[Fault]:
    topic, path = parts.topic, "spec.source.topic"
    if topic is None:
        return
    if parts.kafka is not None:
        outputs = [names.topic(parts.namespace, parts.name or "", kind) for kind in names.OUTPUT_TOPICS]
        yield from parts.kafka.faults(
            topic.name, managed=topic.managed, outputs=outputs, multi_topic=parts.is_multi_topic
        )
    elif (
        topic.name
        and not parts.is_multi_topic
        and not parts.has_other_cluster
        and not limits.may_manage(topic.name, parts.namespace)
    ):
        yield from _topic_access_faults(topic, limits, f"{path}.name", parts.namespace)
    if topic.name is not None and topic.name.strip(".") == "":
        yield Fault(f"{path}.name", topic.name, "Kafka does not allow this name", "use a name with letters or digits")
    if topic.start_from not in ("earliest", "latest") and not _is_time(topic.start_from):
        remedy = "write earliest, latest or a time with a zone, such as 2013-01-31T12:00:00Z"
        yield Fault(f"{path}.startFrom", topic.start_from, "is not a position to start from", remedy)
    if parse_ms(topic.retention) < 60_000:
        message = "is too short: Kafka would delete events before the pipeline reads them"
        yield Fault(f"{path}.retention", topic.retention, message, "write 1m or more")
    yield from _topic_config_faults(topic.config, topic.replication_factor, f"{path}.config")


def _topic_access_faults(topic: TopicSpec, limits: TopicLimits, path: str, namespace: str) -> Iterator[Fault]:
    assert topic.name is not None  # noqa: S101 - the caller has checked it
    if names.is_connect_topic(topic.name):
        yield Fault(path, topic.name, CONNECT_TOPIC_MESSAGE, "use another topic")
    elif not limits.may_read(topic.name):
        remedy = f"start the name with '{namespace}.', or remove the name"
        if not topic.managed:
            remedy = (
                f"add the topic to the platform's list of readable topics, {READABLE_TOPICS_SETTING}, or start the name"
                f" with '{namespace}.'"
            )
        yield Fault(path, topic.name, "the topic belongs to another namespace", remedy)
    elif topic.managed:
        message = "the platform allows reading this topic, but not managing it"
        yield Fault(path, topic.name, message, "set managed: false")


def _topic_config_faults(config: Mapping[str, str], replication_factor: int | None, path: str) -> Iterator[Fault]:
    for key, value in config.items():
        if key in _PLATFORM_CONFIGS:
            yield Fault(f"{path}.{key}", value, "the platform sets this config itself", _PLATFORM_CONFIGS[key])
    in_sync = config.get("min.insync.replicas")
    if in_sync is None:
        return
    if not in_sync.isascii() or not in_sync.isdigit() or not 1 <= int(in_sync[:9]) <= 15:
        yield Fault(f"{path}.min.insync.replicas", in_sync, "is not a number of replicas", 'write "1" to "15"')
    elif replication_factor is not None and int(in_sync) > replication_factor:
        remedy = f"write at most {replication_factor}, the replicationFactor"
        yield Fault(f"{path}.min.insync.replicas", in_sync, "is more than the number of replicas", remedy)


def _is_time(text: str) -> bool:
    try:
        read_start(text)
    except ValueError:
        return False
    return True


def _source_faults(parts: Parts, columns: Columns, _limits: TopicLimits) -> Iterator[Fault]:
    fields = {field.name: field.model for field in parts.fields if field.name is not None}
    complete = bool(parts.fields) and len(fields) >= len({f.name for f in parts.fields})
    event_time = parts.event_time
    for path, name in (
        ("spec.source.key", parts.key),
        ("spec.source.eventTime.field", event_time.field if event_time else None),
        ("spec.source.dedupe.field", parts.dedupe.field if parts.dedupe else None),
    ):
        if name is not None and name not in fields and complete and all(f.name is not None for f in parts.fields):
            if name in lookup_types(parts.lookups):
                message = "is a field of a lookup, not a field of the event"
                yield Fault(path, name, message, "use a field of spec.source.fields")
            elif name in columns.types:
                yield Fault(path, name, "is a derive, not a field of the event", "use a field of spec.source.fields")
            else:
                usable = [n for n, model in fields.items() if model and model.type == "timestamp"]
                choices = usable if path.endswith("eventTime.field") and usable else fields
                yield Fault(path, name, "there is no field of this name", did_you_mean(name, choices))
    if event_time is not None and event_time.field is not None:
        model = fields.get(event_time.field)
        if model is not None and model.type != "timestamp":
            remedy = "declare the field with type: timestamp"
            yield Fault(
                "spec.source.eventTime.field", event_time.field, f"is of type {model.type}, not timestamp", remedy
            )


def _window_faults(parts: Parts, _columns: Columns, _limits: TopicLimits) -> Iterator[Fault]:
    for aggregation in parts.aggregations:
        if aggregation.window is not None:
            path, window = f"{aggregation.path}.window", WINDOWS.to_kind(aggregation.window)
            yield from _window_member_faults(aggregation.window, path)
            if window is not None:
                yield from window.faults(path)
            yield from _window_zone_faults(aggregation.window, path)
            yield from _window_retention_faults(aggregation, aggregation.window, window)


def _window_member_faults(flat: Model, path: str) -> Iterator[Fault]:
    for member in WINDOWS.members.values():
        fault, text = WINDOWS.fault(flat, member, path), getattr(flat, member.name)
        if fault:
            yield fault
        elif text is not None and member.name != "zone" and min_length_ms(text) < MIN_WINDOW_MS:
            yield Fault(f"{path}.{member.alias}", text, "is shorter than a second", "write 1s or more")


def _window_zone_faults(flat: Any, path: str) -> Iterator[Fault]:
    if flat.zone is not None:
        try:
            check_zone(flat.zone)
        except ValueError as error:
            yield Fault(f"{path}.zone", flat.zone, *str(error).split(": ", 1))


def _window_retention_faults(aggregation: AggregationPart, flat: Any, window: Window | None) -> Iterator[Fault]:
    try:
        length = window.longest if window else getattr(flat, WINDOWS.by_name[flat.type].length_member)
        retention_ms = parse_ms(aggregation.retention or "")
    except ValueError:  # another rule reports the invalid duration
        return
    if length is not None and min_length_ms(length) + parse_ms(flat.grace) > retention_ms:
        remedy = f"keep windows for at least {length} + {flat.grace}"
        where = f"{aggregation.path}.retention"
        yield Fault(where, aggregation.retention, "is shorter than a window plus its grace", remedy)


def _anomaly_faults(parts: Parts, columns: Columns, _limits: TopicLimits) -> Iterator[Fault]:
    by_name = {a.name: a for a in parts.aggregations if a.name is not None}
    all_named = bool(parts.aggregations) and all(a.name is not None for a in parts.aggregations)
    for anomaly in parts.anomalies:
        rule, path = anomaly.model, anomaly.path
        if rule is None or anomaly.detector is None:
            continue
        yield from DETECTORS.faults(anomaly.detector, f"{path}.detector")
        target_faults = list(_target_faults(rule, path))
        yield from target_faults
        if target_faults:
            continue
        if rule.aggregation is None:
            yield from _watched_field_faults(rule, path, columns)
        elif (aggregation := by_name.get(rule.aggregation)) is not None:
            yield from _watched_metric_faults(rule.watched, f"{path}.metric", aggregation, columns)
        elif all_named:
            remedy = did_you_mean(rule.aggregation, by_name)
            yield Fault(f"{path}.aggregation", rule.aggregation, "there is no aggregation of this name", remedy)


def _target_faults(rule: AnomalySpec, path: str) -> Iterator[Fault]:
    if rule.metric is None and rule.field is None:
        message = "an anomaly rule needs a metric of an aggregation, or a field"
        yield Fault(path, rule.name, message, "add metric: or field:")
    elif rule.metric is not None and rule.field is not None:
        message = f"the rule already watches metric {rule.metric}"
        yield Fault(f"{path}.field", rule.field, message, "remove metric or field, or write two rules")
    elif rule.metric is not None:
        if rule.aggregation is None:
            remedy = "add the aggregation of the metric, or watch a field"
            yield Fault(f"{path}.aggregation", ABSENT, "a metric needs an aggregation", remedy)
        if rule.group_by:
            message = "a rule that watches a metric uses the groups of the aggregation"
            remedy = "remove groupBy; only a rule that watches a field may set groupBy"
            yield Fault(f"{path}.groupBy", rule.group_by, message, remedy)
    elif rule.aggregation is not None:
        message = "a rule that watches a field reads single events, not an aggregation"
        yield Fault(
            f"{path}.aggregation", rule.aggregation, message, "remove aggregation; to watch groups, set groupBy"
        )


def _watched_field_faults(rule: AnomalySpec, path: str, columns: Columns) -> Iterator[Fault]:
    named = [(f"{path}.field", rule.watched), *((f"{path}.groupBy[{i}]", g) for i, g in enumerate(rule.group_by))]
    for where, name in named:
        fault = columns.unknown_fault(where, name, "field or derive") or columns.grouping_fault(where, name)
        if fault:
            yield fault
    yield from _duplicate_faults(named[1:], "group column")
    kind = columns.types.get(rule.watched)
    if kind is not None and base_type(kind) not in _WATCHABLE_TYPES:
        message = f"is of type {kind}, not a number"
        yield Fault(f"{path}.field", rule.watched, message, "watch a number, or derive a number from this field")


def _watched_metric_faults(name: str, path: str, aggregation: AggregationPart, columns: Columns) -> Iterator[Fault]:
    metrics = {metric.name: metric for metric in aggregation.metrics if metric.name is not None}
    metric = metrics.get(name)
    if metric is None:
        if metrics and len(metrics) == len(aggregation.metrics):
            message = f"aggregation {aggregation.name} has no metric of this name"
            yield Fault(path, name, message, did_you_mean(name, metrics))
        return
    if metric.model is None:
        return
    metric_type = answer_types(aggregation, columns)[0].get(name)
    if metric_type is None:
        return
    if metric_type == "array":
        remedy = "watch a numeric metric, such as the count of an aggregation that is grouped by the field"
        yield Fault(path, name, f"the metric is a list of values ({metric.model.function}), not a number", remedy)
    elif base_type(metric_type) not in _WATCHABLE_TYPES:
        yield Fault(path, name, f"the metric is of type {metric_type}, not a number", "watch a numeric metric")


def _processor_faults(parts: Parts, _columns: Columns, _limits: TopicLimits) -> Iterator[Fault]:
    processor = parts.processor
    if processor is None:
        return
    flush = parse_ms(processor.flush_interval)
    if not 10 <= flush <= 60_000:
        yield Fault("spec.processor.flushInterval", processor.flush_interval, "is out of bounds", "write 10ms to 60s")
    partitions = parts.topic.partitions if parts.topic else None
    scaling = processor.scaling
    if scaling is None:
        if partitions is not None and processor.replicas > partitions:
            message = f"is more than the topic's {partitions} partitions"
            remedy = f"write at most {partitions}; a replica without a partition idles"
            yield Fault("spec.processor.replicas", processor.replicas, message, remedy)
        return
    yield from scaling_faults(scaling, partitions, flush_ms=flush)


RULES: tuple[Callable[[Parts, Columns, TopicLimits], Iterator[Fault]], ...] = (
    _name_faults,
    _topic_faults,
    topics_faults,
    _source_faults,
    field_faults,
    format_faults,
    input_faults,
    python_faults,
    lookup_faults,
    connector_faults,
    _window_faults,
    metric_faults,
    _anomaly_faults,
    retention_faults,
    _processor_faults,
)
