"""The CEL rules of the CRD, which the API server checks.

The operator checks the rules that CEL cannot express, such as comparisons of durations.
"""

from __future__ import annotations

from tidemill_contract.functions.registry import PARAMETERS
from tidemill_contract.resource.name_rules import SYSTEM_COLUMNS
from tidemill_operator.resource.cel import Rule, first_match, format_expression, known_names
from tidemill_operator.resource.field_rules import FIELD, LOOKUP, LOOKUP_SOURCE, NOT_RESERVED, WRITTEN
from tidemill_operator.resource.kinds import detector_rules, metric_rules, window_rules

_DERIVES = "(has(self.transform) && has(self.transform.derive) ? self.transform.derive : [])"
# CEL cannot join the columns of several lookups. If the spec has lookups, the operator checks references to fields.
_UNLESS_LOOKUPS = "has(self.lookups) ||"
_FIELDS = "self.fields.map(f, f.name)"
_SYSTEM_COLUMNS = "[" + ", ".join(f"'{name}'" for name in SYSTEM_COLUMNS) + "]"
_PARTITIONS = "self.source.topic.partitions"
_UNKNOWN = "is neither in source.fields nor in transform.derive"
_METRIC_IS_THERE = "self.aggregations.exists(a, a.name == i.aggregation && a.metrics.exists(m, m.name == i.metric))"


def _with_names(quantifier: str, expression: str) -> str:
    """Return a CEL expression in which `names` is the list of all fields and derives."""
    return f"[self.source.fields.map(f, f.name) + {_DERIVES}.map(d, d.name)].{quantifier}(names, {expression})"


def _first_unknown(items: str, wrong: str, template: str, *values: str) -> str:
    text = format_expression(f"{template} {_UNKNOWN}%s", *values, known_names("names"))
    return _with_names("map", first_match(items, wrong, text)) + "[0]"


# The settings of a metric that take the name of a field.
_NAMING = ("field", *(parameter.alias for parameter in PARAMETERS.values() if parameter.field_types is not None))
_FIELDS_ARE_THERE = " && ".join(f"(!has(m.{name}) || m.{name} in names)" for name in _NAMING)


def _wrong_field() -> str:
    texts = [format_expression(f"{name} %s of metric %s", f"m.{name}", "m.name") for name in _NAMING]
    tests = [f"has(m.{name}) && !(m.{name} in names) ? {text} : " for name, text in zip(_NAMING, texts, strict=True)]
    return "".join(tests[:-1]) + texts[-1]


_RESOURCE = (
    Rule(
        "size(self.metadata.name) <= 40",
        "metadata.name must have at most 40 characters",
        format_expression(
            "the name %s with %d characters is too long for Kafka and Postgres; write at most 40",
            "self.metadata.name",
            "size(self.metadata.name)",
        ),
        "metadata.name",
    ),
    Rule(
        "self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        "metadata.name must consist of a-z, 0-9 and -, with a letter or digit first and last",
        format_expression(
            "the name %s must consist of a-z, 0-9 and -, with a letter or digit first and last", "self.metadata.name"
        ),
        "metadata.name",
    ),
)

_CHANGES = (
    Rule(
        "!has(oldSelf.source.topic) || !has(oldSelf.source.topic.name) || (has(self.source.topic) &&"
        " has(self.source.topic.name) && self.source.topic.name == oldSelf.source.topic.name) ||"
        " (has(self.source.topics) && oldSelf.source.topic.name in self.source.topics) ||"
        " has(self.source.topicPattern)",
        "source.topic.name cannot change once it is set; make a new pipeline",
        format_expression(
            "the name cannot change; write %s again, or make a new pipeline", "oldSelf.source.topic.name"
        ),
        "source.topic.name",
    ),
    Rule(
        "!has(oldSelf.source.topic) || !has(oldSelf.source.topic.partitions) || (has(self.source.topic) &&"
        f" has({_PARTITIONS}) && {_PARTITIONS} >= oldSelf.source.topic.partitions) || has(self.source.topics)"
        " || has(self.source.topicPattern)",
        "source.topic.partitions can grow, but not be reduced or removed",
        format_expression(
            "partitions can grow, but not be reduced or removed; write %d or more", "oldSelf.source.topic.partitions"
        ),
        "source.topic.partitions",
    ),
    Rule(
        "!has(oldSelf.source.topics) || has(self.source.topics) || has(self.source.topicPattern)",
        "source.topics cannot be removed without source.topicPattern; write a list (of one topic or more) or a pattern,"
        " or make a new pipeline",
        "'the list of topics cannot be removed without a pattern; write a list or a pattern, or make a new pipeline'",
        "source.topics",
    ),
    Rule(
        "!has(oldSelf.source.topicPattern) || has(self.source.topicPattern) || has(self.source.topics)",
        "source.topicPattern cannot be removed without source.topics; write a pattern or a list, or make a new"
        " pipeline",
        "'the pattern of topics cannot be removed without a list; write a pattern or a list, or make a new pipeline'",
        "source.topicPattern",
    ),
    Rule(
        "has(self.source.key) == has(oldSelf.source.key) && (!has(self.source.key) ||"
        " self.source.key == oldSelf.source.key)",
        "source.key cannot change; make a new pipeline",
        "has(oldSelf.source.key) ? "
        + format_expression("the key cannot change; write the old key %s, or make a new pipeline", "oldSelf.source.key")
        + " : 'a key cannot be added; remove key, or make a new pipeline'",
        "source.key",
    ),
)

_REFERENCES = (
    Rule(
        "!self.source.fields.exists(f, f.type == 'json') || (has(self.events) && has(self.events.store) &&"
        " self.events.store)",
        "fields of type json need events.store: true",
        format_expression(
            "field %s of type json is stored only with raw events; set events.store: true, or remove the field",
            "self.source.fields.map(f, f.type == 'json', f.name)[0]",
        ),
        "source.fields",
    ),
    Rule(
        f"{_DERIVES}.all(d, !self.source.fields.exists(f, f.name == d.name))",
        "a derive is named like a field; rename the derive",
        first_match(
            "self.transform.derive",
            "self.source.fields.exists(f, f.name == i.name)",
            format_expression("derive %s is named like a field; rename the derive", "i.name"),
        ),
        "transform.derive",
    ),
    Rule(
        f"{_UNLESS_LOOKUPS} self.aggregations.all(a, !has(a.groupBy) || a.groupBy.all(g,"
        " self.source.fields.exists(f, f.name == g)"
        f" || {_DERIVES}.exists(d, d.name == g)))",
        f"a groupBy column {_UNKNOWN}",
        _first_unknown(
            "self.aggregations",
            "has(i.groupBy) && !i.groupBy.all(g, g in names)",
            "aggregation %s: groupBy column %s",
            "i.name",
            "i.groupBy.map(g, !(g in names), g)[0]",
        ),
        "aggregations",
    ),
    Rule(
        f"{_UNLESS_LOOKUPS} " + _with_names("all", f"self.aggregations.all(a, a.metrics.all(m, {_FIELDS_ARE_THERE}))"),
        f"a metric's field {_UNKNOWN}",
        _first_unknown(
            "self.aggregations",
            f"!i.metrics.all(m, {_FIELDS_ARE_THERE})",
            "aggregation %s: %s",
            "i.name",
            f"i.metrics.map(m, !({_FIELDS_ARE_THERE}), {_wrong_field()})[0]",
        ),
        "aggregations",
    ),
)

_ANOMALIES = (
    Rule(
        f"!has(self.anomalies) || self.anomalies.all(i, !has(i.aggregation) || !has(i.metric) || {_METRIC_IS_THERE})",
        "an anomaly rule names an aggregation or metric that does not exist",
        first_match(
            "self.anomalies",
            f"has(i.aggregation) && has(i.metric) && !{_METRIC_IS_THERE}",
            "self.aggregations.exists(a, a.name == i.aggregation) ? "
            + format_expression(
                "anomaly rule %s: aggregation %s has no metric %s; known are %s",
                "i.name",
                "i.aggregation",
                "i.metric",
                "self.aggregations.map(a, a.name == i.aggregation, a.metrics.map(m, m.name))[0]",
            )
            + " : "
            + format_expression(
                "anomaly rule %s: there is no aggregation %s; known are %s",
                "i.name",
                "i.aggregation",
                "self.aggregations.map(a, a.name)",
            ),
        ),
        "anomalies",
    ),
    Rule(
        f"{_UNLESS_LOOKUPS} !has(self.anomalies) || "
        + _with_names(
            "all",
            "self.anomalies.all(x, (!has(x.field) || x.field in names)"
            " && (!has(x.groupBy) || x.groupBy.all(g, g in names)))",
        ),
        f"an anomaly rule's field or groupBy column {_UNKNOWN}",
        _first_unknown(
            "self.anomalies",
            "(has(i.field) && !(i.field in names)) || (has(i.groupBy) && !i.groupBy.all(g, g in names))",
            "anomaly rule %s: %s",
            "i.name",
            "has(i.field) && !(i.field in names) ? "
            + format_expression("field %s", "i.field")
            + " : "
            + format_expression("groupBy column %s", "i.groupBy.map(g, !(g in names), g)[0]"),
        ),
        "anomalies",
    ),
)

_REPLICAS = Rule(
    f"!has(self.source.topic) || !has({_PARTITIONS}) || {_PARTITIONS} < 1 || !has(self.processor) ||"
    " (has(self.processor.scaling) ? ((!has(self.processor.scaling.maxReplicas) ||"
    f" self.processor.scaling.maxReplicas <= {_PARTITIONS}) &&"
    " (!has(self.processor.scaling.minReplicas) ||"
    f" self.processor.scaling.minReplicas <= {_PARTITIONS})) : (!has(self.processor.replicas) ||"
    f" self.processor.replicas <= {_PARTITIONS}))",
    "more replicas than source.topic.partitions; a replica without a partition idles",
    format_expression(
        "more replicas than partitions; write at most %d replicas, or raise source.topic.partitions",
        _PARTITIONS,
    ),
    "processor",
)

_SOURCE = (
    Rule(
        "!has(self.topics) || !has(self.topicPattern)",
        "topics and topicPattern cannot be combined",
        "'the pipeline already has a list of topics; remove topics or topicPattern'",
        "topicPattern",
    ),
    Rule(
        "!has(self.key) || self.fields.exists(f, f.name == self.key)",
        "key is not in fields",
        format_expression(
            "key %s is not in fields; a derived field cannot be the key%s", "self.key", known_names(_FIELDS)
        ),
        "key",
    ),
    Rule(
        "!has(self.eventTime) || !has(self.eventTime.field) ||"
        " self.fields.exists(f, f.name == self.eventTime.field && f.type == 'timestamp')",
        "eventTime.field must be one of fields, with type timestamp",
        "self.fields.exists(f, f.name == self.eventTime.field) ? "
        + format_expression(
            "field %s is not of type timestamp; give the field this type, or use another field", "self.eventTime.field"
        )
        + " : "
        + format_expression("%s is not in fields%s", "self.eventTime.field", known_names(_FIELDS)),
        "eventTime.field",
    ),
)


_AGGREGATION = (
    Rule(
        "!has(self.groupBy) || self.metrics.all(m, !(m.name in self.groupBy))",
        "a metric is named like a group column; rename the metric",
        format_expression(
            "aggregation %s: metric %s is named like a group column; rename the metric",
            "self.name",
            "self.metrics.map(m, m.name in self.groupBy, m.name)[0]",
        ),
        "metrics",
    ),
    Rule(
        f"!has(self.groupBy) || !self.groupBy.exists(g, g in {_SYSTEM_COLUMNS})",
        f"a group column cannot be called {', '.join(SYSTEM_COLUMNS)}: every Postgres table has these system columns;"
        " derive the column under another name",
        format_expression(
            "aggregation %s: every Postgres table has a system column %s; derive the column under another name",
            "self.name",
            f"self.groupBy.map(g, g in {_SYSTEM_COLUMNS}, g)[0]",
        ),
        "groupBy",
    ),
    *window_rules(),
)


_METRIC = (
    NOT_RESERVED,
    *metric_rules(),
)

_ANOMALY = (
    Rule(
        "has(self.metric) != has(self.field)",
        "an anomaly rule watches either a metric or a field",
        "has(self.metric) ? "
        + format_expression(
            "anomaly rule %s watches metric %s and field %s; remove metric or field",
            "self.name",
            "self.metric",
            "self.field",
        )
        + " : "
        + format_expression("anomaly rule %s watches nothing; add aggregation and metric, or field", "self.name"),
    ),
    Rule(
        "has(self.metric) == has(self.aggregation)",
        "metric and aggregation must be set together; groupBy belongs to a rule with field",
        "has(self.metric) ? "
        + format_expression(
            "anomaly rule %s: metric %s needs an aggregation; add aggregation: NAME", "self.name", "self.metric"
        )
        + " : "
        + "(has(self.field) ? "
        + format_expression(
            "anomaly rule %s: a rule with field cannot have aggregation %s; remove aggregation, and use groupBy for"
            " groups",
            "self.name",
            "self.aggregation",
        )
        + " : "
        + format_expression(
            "anomaly rule %s: aggregation %s needs a metric; add metric",
            "self.name",
            "self.aggregation",
        )
        + ")",
        "aggregation",
    ),
    Rule(
        "!has(self.groupBy) || size(self.groupBy) == 0 || has(self.field)",
        "only an anomaly rule with field may have groupBy",
        format_expression(
            "anomaly rule %s: only a rule with field may have groupBy; remove groupBy",
            "self.name",
        ),
        "groupBy",
    ),
)


_SCALING = (
    Rule(
        "!has(self.minReplicas) || !has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
        "minReplicas must not be more than maxReplicas",
        format_expression(
            "%d is more than maxReplicas %d; lower minReplicas, or raise maxReplicas",
            "self.minReplicas",
            "self.maxReplicas",
        ),
        "minReplicas",
    ),
    Rule(
        "!has(self.minReplicas) || self.minReplicas > 0 || has(self.scaleToZeroAfter) || self.mode == 'external'",
        "minReplicas 0 needs scaleToZeroAfter",
        "'minReplicas 0 needs scaleToZeroAfter; add scaleToZeroAfter: 10m, or write at least 1'",
        "minReplicas",
    ),
)

# The rules by path. `[]` stands for each item of a list.
RULES: dict[str, tuple[Rule, ...]] = {
    "": _RESOURCE,
    "spec": (*_CHANGES, *_REFERENCES, *_ANOMALIES, _REPLICAS),
    "spec.source": _SOURCE,
    "spec.source.fields[]": (NOT_RESERVED, *FIELD),
    "spec.lookups[]": (LOOKUP,),
    "spec.lookups[].from": (LOOKUP_SOURCE,),
    "spec.lookups[].fields[]": (NOT_RESERVED, *WRITTEN),
    "spec.transform.derive[]": (NOT_RESERVED,),
    "spec.aggregations[]": _AGGREGATION,
    "spec.aggregations[].metrics[]": _METRIC,
    "spec.anomalies[]": _ANOMALY,
    "spec.anomalies[].detector": tuple(detector_rules()),
    "spec.processor": (
        Rule(
            "!has(self.scaling) || !has(oldSelf.scaling) || self.replicas == oldSelf.replicas",
            "replicas cannot change while scaling is set; change scaling, or remove scaling first",
            format_expression(
                "replicas cannot change while scaling is set; set replicas to %d and change scaling, or remove scaling"
                " first",
                "oldSelf.replicas",
            ),
            "replicas",
        ),
    ),
    "spec.processor.scaling": _SCALING,
    "spec.transform.python.scaling": _SCALING,
}
