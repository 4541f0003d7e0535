"""Specs, changes and names that break a rule of the CRD, with the messages of these rules."""

from __future__ import annotations

from typing import Any

from drawn.metrics import parameters_for
from in_cluster.admission_specs import base
from tidemill_contract.functions.registry import PARAMETERS, join_names
from tidemill_operator.actuators.kubernetes.api import Document

WINDOW, METRICS, METRICS_0 = "aggregations.0.window", "aggregations.0.metrics", "aggregations[0].metrics[0]"
COLUMNS = '; known are ["country", "amount", "ts", "large"]'
UNKNOWN = "is neither in source.fields nor in transform.derive"
OF_METRIC = {"name": "a", "aggregation": "by_country", "metric": "orders"}
LOOKUP = {"name": "c", "on": "country", "from": {"topic": "t"}, "fields": [{"name": "region", "type": "string"}]}
ADDS = {"name": "m", "function": "sum", "field": "amount"}
# Refused on creation: the member that is set, its value, the member that the message names, and part of the message.
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
        "field country of type json is stored only with raw events; set events.store: true, or remove the field",
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
        "metric m: an expression takes no where; add where to the metrics that the expression uses",
    ),
    *(
        (
            METRICS,
            [ADDS | {p.alias: parameters_for(p.functions[0], {"amount": "number"})[p.alias]}],
            f"{METRICS_0}.{p.alias}",
            f"metric m: sum takes no {p.alias}; remove {p.alias}, or use {join_names(p.functions, 'or')}",
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
        if p.required
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
        [{"name": "a", "aggregation": "by_country"}],
        "anomalies[0].aggregation",
        "anomaly rule a: aggregation by_country needs a metric; add metric",
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
# Refused on update: members of the spec before, the changed member, its new value, and part of the message.
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
# Refused names, each with part of the message.
NAMES = [
    (
        "a" * 41,
        f"the name {'a' * 41} with 41 characters is too long for Kafka and Postgres; write at most 40",
    ),
    ("has.dot", "the name has.dot must consist of a-z, 0-9 and -, with a letter or digit first and last"),
]
