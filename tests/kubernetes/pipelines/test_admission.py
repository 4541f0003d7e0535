"""The CRD in a real API server: its largest spec is taken, and each of its rules refuses what it is there for."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest

from drawn.metrics import parameters_for
from tidemill_contract.functions.registry import PARAMETERS, listed
from tidemill_operator.actuators.kubernetes.api import PIPELINE, Document
from tidemill_operator.errors import TidemillError
from tidemill_operator.resource.rules import RULES

pytestmark = pytest.mark.kubernetes


def base() -> Document:
    """A spec that every rule lets pass."""
    return {
        "source": {
            "topic": {"partitions": 4},
            "fields": [
                {"name": "country", "type": "string"},
                {"name": "amount", "type": "number"},
                {"name": "ts", "type": "timestamp"},
            ],
        },
        "transform": {"derive": [{"name": "large", "expression": "amount > 9"}]},
        "aggregations": [
            {
                "name": "by_country",
                "groupBy": ["country"],
                "window": {"type": "tumbling", "size": "1m"},
                "metrics": [{"name": "orders", "function": "count"}],
            }
        ],
    }


def resource(spec: Document, namespace: str, name: str = "orders") -> Document:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": PIPELINE.api_version, "kind": PIPELINE.kind, "metadata": metadata, "spec": spec}


def put(spec: Document, path: str, value: Any) -> Document:
    """A copy with one member set; numbers in the path are places in lists."""
    changed = copy.deepcopy(spec)
    place: Any = changed
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in steps:
        place = place[step] if isinstance(step, int) else place.setdefault(step, {})
    if value is None:
        place.pop(last, None)
    else:
        place[last] = value
    return changed


WINDOW, METRICS, METRICS_0 = "aggregations.0.window", "aggregations.0.metrics", "aggregations[0].metrics[0]"
COLUMNS = '; known are ["country", "amount", "ts", "large"]'
UNKNOWN = "is neither in source.fields nor in transform.derive"
OF_METRIC = {"name": "a", "aggregation": "by_country", "metric": "orders"}
LOOKUP = {"name": "c", "on": "country", "from": {"topic": "t"}, "fields": [{"name": "region", "type": "string"}]}
ADDS = {"name": "m", "function": "sum", "field": "amount"}
# What is refused when it is made: the member that is set, to what, the member that is named, and the words.
REFUSED: list[tuple[str, Any, str, str]] = [
    (
        "source.key",
        "nothing",
        "source.key",
        'key nothing is not in fields; a derived field cannot be the key; known are ["country", "amount", "ts"]',
    ),
    (
        "source",
        {**base()["source"], "topics": ["eu.orders"], "topicPattern": "eu.*"},
        "source.topicPattern",
        "the pipeline already has a list of topics; remove topics or topicPattern",
    ),
    (
        "source.eventTime",
        {"field": "nothing"},
        "source.eventTime.field",
        'nothing is not in fields; known are ["country", "amount", "ts"]',
    ),
    (
        "source.eventTime",
        {"field": "country"},
        "source.eventTime.field",
        "field country is not of type timestamp; give the field this type, or use another field",
    ),
    (
        "source.fields.0.name",
        "window_start",
        "source.fields[0].name",
        "the name window_start is reserved for columns of API answers; choose another",
    ),
    *(
        (
            f"source.fields.0.{member}",
            value,
            f"source.fields[0].{member}",
            f"field country is of type string, and only {kind}s have a {member}; remove {member}",
        )
        for kind, member, value in (
            ("timestamp", "format", "us"),
            ("timestamp", "zone", "Europe/Berlin"),
            ("decimal", "precision", 9),
            ("decimal", "scale", 2),
        )
    ),
    (
        "source.fields.0.type",
        "decimal",
        "source.fields[0].type",
        "field country is a decimal; add the number of digits after the point, such as scale: 2",
    ),
    (
        "source.fields.0",
        {"name": "country", "type": "decimal", "precision": 2, "scale": 3},
        "source.fields[0].scale",
        "field country: scale 3 is more than precision 2; lower the scale",
    ),
    *(
        (
            "source.fields.0.from",
            part,
            "source.fields[0].type",
            f"field country is read from the {part} of records; write type: {kind}",
        )
        for part, kind in (("timestamp", "timestamp"), ("partition", "integer"), ("offset", "integer"))
    ),
    (
        "source.fields.0.type",
        "json",
        "source.fields",
        "field country is of type json, which is stored only with raw events; set events.store: true, or remove the"
        " field",
    ),
    ("transform.derive.0.name", "window_start", "transform.derive[0].name", "the name window_start is reserved"),
    (
        "transform.derive.0.name",
        "amount",
        "transform.derive",
        "derive amount is named like a field; rename the derive",
    ),
    (
        "aggregations.0.groupBy",
        ["xmin"],
        "aggregations[0].groupBy",
        "aggregation by_country: every Postgres table has a system column xmin; derive the column under another name",
    ),
    (
        "aggregations.0.groupBy",
        ["country", "cuntry"],
        "aggregations",
        f"aggregation by_country: groupBy column cuntry {UNKNOWN}{COLUMNS}",
    ),
    (
        METRICS,
        [{"name": "m", "function": "sum", "field": "amout"}],
        "aggregations",
        f"aggregation by_country: field amout of metric m {UNKNOWN}{COLUMNS}",
    ),
    (
        METRICS,
        [{"name": "country", "function": "count"}],
        "aggregations[0].metrics",
        "aggregation by_country: metric country is named like a group column; rename the metric",
    ),
    (METRICS, [{"name": "closed", "function": "count"}], f"{METRICS_0}.name", "the name closed is reserved"),
    (METRICS, [{"name": "m", "function": "sum"}], f"{METRICS_0}.field", "metric m: sum needs a field; add field: NAME"),
    (
        METRICS,
        [{"name": "m"}],
        f"{METRICS_0}.expression",
        "metric m needs a function or an expression; add a function, such as function: count",
    ),
    (
        METRICS,
        [ADDS | {"expression": "m / 2"}],
        f"{METRICS_0}.expression",
        "metric m: sum takes no expression; remove either function or expression",
    ),
    (
        METRICS,
        [{"name": "m", "expression": "m / 2", "field": "amount"}],
        f"{METRICS_0}.field",
        "metric m: a metric without a function takes no field; add a function, or remove field",
    ),
    (
        METRICS,
        [{"name": "m", "expression": "m / 2", "where": "amount > 1"}],
        f"{METRICS_0}.where",
        "metric m: an expression takes no where; add where to the metrics that it uses",
    ),
    *(
        (
            METRICS,
            [ADDS | {p.alias: parameters_for(p.functions[0], {"amount": "number"})[p.alias]}],
            f"{METRICS_0}.{p.alias}",
            f"metric m: sum takes no {p.alias}; remove {p.alias}, or use {listed(p.functions, 'or')}",
        )
        for p in PARAMETERS.values()
    ),
    *(
        (
            METRICS,
            [{"name": "m", "function": p.functions[0], "field": "amount"}],
            f"{METRICS_0}.{p.alias}",
            f"metric m: {p.functions[0]} needs {p.alias}; {p.remedy}",
        )
        for p in PARAMETERS.values()
        if p.needed
    ),
    (
        METRICS,
        [{"name": "m", "function": "max_by", "field": "amount", "by": "amout"}],
        "aggregations",
        f"aggregation by_country: by amout of metric m {UNKNOWN}{COLUMNS}",
    ),
    *(
        (
            WINDOW,
            window,
            f"aggregations[0].window.{member}",
            f"aggregation by_country: a {window['type']} window {words}",
        )
        for window, member, words in (
            ({"type": "tumbling"}, "size", "needs size; add size: 1m"),
            ({"type": "session", "gap": "1m", "size": "1m"}, "size", "takes no size; remove size"),
            ({"type": "hopping", "size": "1m"}, "hop", "needs hop; add hop: 10s"),
            ({"type": "tumbling", "size": "1m", "hop": "1m"}, "hop", "takes no hop; remove hop"),
            ({"type": "session"}, "gap", "needs gap; add gap: 5m"),
            ({"type": "tumbling", "size": "1m", "gap": "1m"}, "gap", "takes no gap; remove gap"),
            (
                {"type": "tumbling", "size": "1m", "maxLength": "1d"},
                "maxLength",
                "takes no maxLength; remove maxLength",
            ),
            ({"type": "session", "gap": "1m", "zone": "Europe/Oslo"}, "zone", "takes no zone; remove zone"),
            ({"type": "session", "gap": "1m", "offset": "1s"}, "offset", "takes no offset; remove offset"),
        )
    ),
    (
        WINDOW,
        {"type": "tumbling", "size": "24h", "zone": "Europe/Oslo"},
        "aggregations[0].window.size",
        "aggregation by_country: with zone, size must be in days or longer units, not 24h; write a length such as 1d,"
        " 1w or 1mo, or remove zone",
    ),
    (
        "anomalies",
        [{**OF_METRIC, "metric": "nothing"}],
        "anomalies",
        'anomaly rule a: aggregation by_country has no metric nothing; known are ["orders"]',
    ),
    (
        "anomalies",
        [{**OF_METRIC, "aggregation": "nothing"}],
        "anomalies",
        'anomaly rule a: there is no aggregation nothing; known are ["by_country"]',
    ),
    (
        "anomalies",
        [{"name": "a", "field": "nothing"}],
        "anomalies",
        f"anomaly rule a: field nothing {UNKNOWN}{COLUMNS}",
    ),
    (
        "anomalies",
        [{"name": "a", "field": "amount", "groupBy": ["nothing"]}],
        "anomalies",
        f"anomaly rule a: groupBy column nothing {UNKNOWN}{COLUMNS}",
    ),
    (
        "anomalies",
        [{"name": "a"}],
        "anomalies[0]",
        "anomaly rule a watches nothing; add aggregation and metric, or field",
    ),
    (
        "anomalies",
        [{**OF_METRIC, "field": "amount"}],
        "anomalies[0]",
        "anomaly rule a watches metric orders and field amount; remove metric or field",
    ),
    (
        "anomalies",
        [{"name": "a", "aggregation": "by_country", "field": "amount"}],
        "anomalies[0].aggregation",
        "anomaly rule a: a rule with field cannot have aggregation by_country; remove aggregation, and use groupBy for"
        " groups",
    ),
    (
        "anomalies",
        [{"name": "a", "metric": "orders"}],
        "anomalies[0].aggregation",
        "anomaly rule a: metric orders needs an aggregation; add aggregation: NAME",
    ),
    (
        "anomalies",
        [{**OF_METRIC, "groupBy": ["country"]}],
        "anomalies[0].groupBy",
        "anomaly rule a: only a rule with field may have groupBy; remove groupBy",
    ),
    *(
        (
            "anomalies",
            [{**OF_METRIC, "detector": {member: value}}],
            f"anomalies[0].detector.{member}",
            f"auto takes no {member}; remove {member}, or use {kind}",
        )
        for member, value, kind in (("weight", 0.1, "ewma"), ("span", 50, "mad"), ("period", "week", "seasonal"))
    ),
    *(
        (
            "lookups",
            [{**LOOKUP, **members}],
            "lookups[0].on",
            "lookup c needs the member `on` exactly once; write the field that contains the key",
        )
        for members in ({"on": None}, {"true": "country"})
    ),
    *(
        (
            "lookups",
            [{**LOOKUP, "from": source}],
            "lookups[0].from",
            "a lookup has one source; write one of configMap, table, query and topic",
        )
        for source in ({}, {"topic": "t", "table": "t"})
    ),
    (
        "processor",
        {"replicas": 5},
        "processor",
        "more replicas than partitions; write at most 4 replicas, or raise source.topic.partitions",
    ),
    (
        "processor.scaling",
        {"minReplicas": 3, "maxReplicas": 2},
        "processor.scaling.minReplicas",
        "3 is more than maxReplicas 2; lower minReplicas, or raise maxReplicas",
    ),
    (
        "processor.scaling",
        {"minReplicas": 0},
        "processor.scaling.minReplicas",
        "minReplicas 0 needs scaleToZeroAfter; add scaleToZeroAfter: 10m, or write at least 1",
    ),
]
# What is refused when it is changed: the spec before, the member, its new value, the words.
CHANGES: list[tuple[Document, str, Any, str]] = [
    (
        {"source.topic.name": "x.y"},
        "source.topic.name",
        "x.z",
        "the name cannot change; write x.y again, or make a new pipeline",
    ),
    ({}, "source.topic.partitions", 3, "partitions can grow, but not be reduced or removed; write 4 or more"),
    ({}, "source.topic.partitions", None, "partitions can grow, but not be reduced or removed; write 4 or more"),
    (
        {"source.key": "country"},
        "source.key",
        "amount",
        "the key cannot change; write the old key country, or make a new pipeline",
    ),
    (
        {"source.topics": ["eu.orders", "us.orders"], "source.topic": None},
        "source.topics",
        None,
        "the list of topics cannot be removed without a pattern; write a list or a pattern, or make a new pipeline",
    ),
    (
        {"source.topicPattern": "eu.*", "source.topic": None},
        "source.topicPattern",
        None,
        "the pattern of topics cannot be removed without a list; write a pattern or a list, or make a new pipeline",
    ),
    ({}, "source.key", "country", "a key cannot be added; remove key, or make a new pipeline"),
    (
        {"processor.scaling": {}},
        "processor.replicas",
        2,
        "replicas cannot change while scaling is set; set replicas to 1 and change scaling, or remove scaling first",
    ),
]
NAMES = [
    (
        "a" * 41,
        f"the name {'a' * 41} has 41 characters, which is too long for names in Kafka and Postgres; write at most 40",
    ),
    ("has.dot", "the name has.dot must consist of a-z, 0-9 and -, with a letter or digit first and last"),
]


def refusal(act: Callable[[], Any]) -> str:
    """The words of a refusal; empty: it was taken."""
    try:
        act()
    except TidemillError as error:
        return str(error)
    return ""


def test_the_base_of_these_cases_is_taken(cluster: Any, namespace: str) -> None:
    """Or every refusal below might be of something else."""
    assert refusal(lambda: cluster.api.create(resource(base(), namespace))) == ""


@pytest.mark.parametrize(("path", "value", "named", "words"), REFUSED, ids=[case[-1] for case in REFUSED])
def test_what_breaks_a_rule_is_refused(
    cluster: Any, namespace: str, path: str, value: Any, named: str, words: str
) -> None:
    """The answer names the member, what is wrong with it, and what to do."""
    told = refusal(lambda: cluster.api.create(resource(put(base(), path, value), namespace)))
    assert f"spec.{named}: Invalid value:" in told
    assert words in told


@pytest.mark.parametrize(("name", "message"), NAMES)
def test_names_that_break_a_rule_are_refused(cluster: Any, namespace: str, name: str, message: str) -> None:
    told = refusal(lambda: cluster.api.create(resource(base(), namespace, name)))
    assert f'metadata.name: Invalid value: "object": {message}' in told


@pytest.mark.parametrize(("before", "path", "value", "message"), CHANGES, ids=[f"{c[1]}: {c[3]}" for c in CHANGES])
def test_changes_that_break_a_rule_are_refused(
    cluster: Any, namespace: str, before: Document, path: str, value: Any, message: str
) -> None:
    spec = base()
    for member, known in before.items():
        spec = put(spec, member, known)
    live = cluster.api.create(resource(spec, namespace))
    changed = {**live, "spec": put(live["spec"], path, value)}
    assert f'spec.{path}: Invalid value: "object": {message}' in refusal(lambda: cluster.api.replace(changed))


def test_more_partitions_are_admitted(cluster: Any, namespace: str) -> None:
    live = cluster.api.create(resource(base(), namespace))
    grown = {**live, "spec": put(live["spec"], "source.topic.partitions", 8)}
    assert refusal(lambda: cluster.api.replace(grown)) == ""


def test_every_text_has_its_case() -> None:
    """A rule that nothing breaks could be wrong for ever, and so could one of its texts."""
    told = "\n".join(case[-1] for case in (*REFUSED, *CHANGES, *NAMES))
    texts = {text for rules in RULES.values() for rule in rules for text in rule.text.split("'")[1::2] if " " in text}
    patterns = {text: re.sub("%[sd]", ".*", re.escape(text)) for text in texts}
    assert texts
    assert [text for text, pattern in patterns.items() if not re.search(pattern, told)] == []


def test_a_text_that_would_be_too_long_is_said_shortly(cluster: Any, namespace: str) -> None:
    """Of so many columns none is listed."""
    fields = [{"name": f"f{number:03}_{'x' * 36}", "type": "number"} for number in range(200)]
    spec = put(put(base(), "source.fields", fields), "transform", {"derive": []})
    told = refusal(lambda: cluster.api.create(resource(spec, namespace)))
    assert f"aggregation by_country: groupBy column country {UNKNOWN}" in told
    assert "known are" not in told


def test_fields_of_lookups_are_columns(cluster: Any, namespace: str) -> None:
    """The key `on` arrives as `true` if YAML 1.1 has read it without quotes."""
    spec = put(base(), "aggregations.0.groupBy", ["region"])
    lookup = {("true" if key == "on" else key): value for key, value in LOOKUP.items()}
    for number, each in enumerate((LOOKUP, lookup)):
        made = resource(put(spec, "lookups", [each]), namespace, f"orders-{number}")
        assert refusal(lambda made=made: cluster.api.create(made)) == ""


def test_the_largest_spec_is_taken(cluster: Any, namespace: str) -> None:
    """At the bounds of the lists and strings that the rules look at: their cost stays within the server's budget."""
    fields = [{"name": f"f{number:03}_{'x' * 36}", "type": "number"} for number in range(200)]
    derives = [{"name": f"d{number:03}_{'x' * 36}", "expression": f"f000_{'x' * 36} + 1"} for number in range(32)]
    names = [field["name"] for field in (*fields, *derives)]
    metrics = [
        {"name": f"m{n:02}_{'x' * 37}", "function": "max_by", "field": names[-1 - n], "by": names[-1 - n]}
        for n in range(32)
    ]
    aggregation = {"groupBy": names[100:108], "window": {"type": "tumbling", "size": "1m"}, "metrics": metrics}
    aggregations = [{"name": f"a{number:02}_{'x' * 37}", **aggregation} for number in range(16)]
    rule = {"aggregation": aggregations[-1]["name"], "metric": metrics[-1]["name"], "detector": {"type": "ewma"}}
    of_events = {"field": names[-1], "groupBy": names[-9:-1], "detector": {"type": "ewma"}}
    anomalies = [{"name": f"r{number:02}_{'x' * 37}", **(of_events if number % 2 else rule)} for number in range(32)]
    looked_up = [{"name": f"l{number:03}_{'x' * 36}", "type": "string"} for number in range(256)]
    lookups = [{**LOOKUP, "name": f"k{n}", "fields": looked_up[n * 32 : n * 32 + 32]} for n in range(8)]
    spec = {
        "source": {"topic": {"partitions": 1024}, "fields": fields},
        "lookups": lookups,
        "transform": {"derive": derives, "filter": " OR ".join([f"{names[0]} > 1"] * 18)[:1024]},
        "aggregations": aggregations,
        "anomalies": anomalies,
    }
    assert refusal(lambda: cluster.api.create(resource(spec, namespace, "a" * 40))) == ""
    live = cluster.api.get(PIPELINE, namespace, "a" * 40)
    assert refusal(lambda: cluster.api.replace({**live, "spec": {**live["spec"], "suspend": True}})) == ""
