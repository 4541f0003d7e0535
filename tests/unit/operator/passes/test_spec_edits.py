"""An edit of every field of the spec: what it changes and what it leaves alone, or why it is refused.

The fields are found by walking the models: one that is new has no case here, and that fails.
"""

from __future__ import annotations

import ast
import copy
import datetime as dt
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

import tidemill_processor
from drawn.metrics import parameters_for
from tidemill_contract.functions.registry import PARAMETERS
from tidemill_contract.resource.kinds.base import Kinds
from tidemill_contract.resource.spec import AnalyticsPipeline, PipelineSpec
from tidemill_operator.actuators.connect.connectors import KafkaConnect
from tidemill_operator.actuators.connect.memory import MemoryConnect
from tidemill_operator.plan.build import build_plan
from tidemill_operator.plan.changes import Change, changes
from tidemill_operator.plan.live import LiveFacts, LiveTopic
from tidemill_operator.plan.model import Plan
from tidemill_operator.plan.restarts import UNREAD
from tidemill_operator.reconcile import reconcile
from tidemill_operator.settings import Platform
from tidemill_operator.testing import MemoryWorld

Document = dict[str, Any]
PLATFORM = Platform(partitions=3)
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)

# What a change is about. A processor's processes are named apart from its replicas: the others see their files change.
TOPIC, CONFIG, TABLE = "topic shop.orders.events", "config orders.json", "table by_country_v1"
PROCESSOR, RESTART, SCALE = "workload orders-processor", "restart orders-processor", "scale orders-processor"
RESULTS = "topic shop.orders.results"
BRIDGE = "workload orders-mqtt"
CONNECTOR = "connector shop.orders.a"
INGEST, API, OWN_API = "workload tidemill-ingest", "workload tidemill-api", "workload orders-api"

# Earlier events stay as they were counted.
RECOUNTED = "aggregation by_country"
# Windows that are stored cannot be turned into others.
NEXT_VERSION = ("create table by_country_v2", "aggregation by_country")

STAGE = "workload orders-stage"
STAGED = {"configMap": "enrich", "file": "enrich.py", "function": "enrich"}
IN_IMAGE = {"file": "/app/enrich.py", "function": "enrich"}

VERBS = ("create", "remove", "restart", "scale")


def base() -> Document:
    """A resource in which every part of the spec is there."""
    return {
        "apiVersion": "tidemill.dev/v1alpha1",
        "kind": "AnalyticsPipeline",
        "metadata": {"name": "orders", "namespace": "shop", "uid": "uid-1", "generation": 1},
        "spec": {
            "source": {
                "topic": {"partitions": 3, "config": {"segment.ms": "3600000"}},
                "fields": [
                    {"name": "ts", "type": "timestamp", "required": True},
                    {"name": "sent", "type": "timestamp"},
                    {"name": "country", "type": "string"},
                    {"name": "amount", "type": "number"},
                    {"name": "weight", "type": "number"},
                    {"name": "note", "type": "string"},
                ],
                "key": "country",
                "eventTime": {"field": "ts"},
            },
            "transform": {"derive": [{"name": "gross", "expression": "amount * 2"}]},
            "aggregations": [
                {
                    "name": "by_country",
                    "groupBy": ["country"],
                    "window": {"type": "tumbling", "size": "1h"},
                    "metrics": [
                        {"name": "orders", "function": "count"},
                        {"name": "revenue", "function": "sum", "field": "gross"},
                    ],
                }
            ],
            "anomalies": [
                {
                    "name": "odd",
                    "aggregation": "by_country",
                    "metric": "orders",
                    "detector": {"type": "zscore", "threshold": 4.0, "warmup": 24},
                }
            ],
            "processor": {"replicas": 2},
        },
    }


@dataclass(frozen=True)
class Case:
    """One edit of a field.

    Attributes:
        edit: of the spec.
        changes: what it changes besides the config file; None: it is refused.
        refused: the beginning of the refusal.
        reason: those that the refusal may have.
        before: an edit that the resource had before, where the field needs another one beside it.
    """

    edit: Callable[[Document], Any]
    changes: tuple[str, ...] | None = ()
    refused: str = ""
    reason: tuple[str, ...] = ("NotSupported",)
    before: Callable[[Document], Any] | None = None


def put(path: str, value: Any) -> Callable[[Document], Any]:
    """Sets a member, with the objects on the way; `[0]` is an item of a list."""

    def edit(spec: Document) -> None:
        at: Any = spec
        *way, last = re.findall(r"[A-Za-z]+|\[\d+\]", path)
        for part in way:
            at = at[int(part[1:-1])] if part.startswith("[") else at.setdefault(part, {})
        at[int(last[1:-1]) if last.startswith("[") else last] = value

    return edit


def decimal(place: int) -> Callable[[Document], Any]:
    """Makes a field a decimal."""
    return both(put(f"source.fields[{place}].type", "decimal"), put(f"source.fields[{place}].scale", 2))


def with_registry(spec: Document) -> None:
    spec["source"]["format"] = {"type": "avro", "registry": {"url": "http://a:8081"}}


def with_hook(spec: Document) -> None:
    hook = {"name": "a", "signature": "hmac", "header": "X-A", "timestampHeader": "X-B", "tolerance": "1m"}
    spec["source"]["webhooks"] = [{**hook, "secretRef": {"name": "s", "key": "k"}}]


def with_broker(spec: Document) -> None:
    spec["source"]["mqtt"] = {"broker": "mqtts://broker", "topics": ["plant/+/temp"], "secretRef": {"name": "s"}}


def hook_edit(member: str, value: Any) -> Case:
    """An edit of a webhook: ingest reads it at once."""
    return Case(put(f"source.webhooks[0].{member}", value), before=with_hook)


def broker_edit(member: str, value: Any) -> Case:
    """An edit of a broker: the bridge is replaced."""
    return Case(put(f"source.mqtt.{member}", value), (BRIDGE,), before=with_broker)


def elsewhere(spec: Document) -> None:
    spec["source"] |= {"kafka": {"bootstrapServers": "a:9092"}, "topic": {"name": "crm.orders", "managed": False}}


def with_dedupe(spec: Document) -> None:
    """The notes are ids."""
    spec["source"]["dedupe"] = {"field": "note", "window": "1h"}


def with_lookups(spec: Document) -> None:
    """Adds a lookup from a file, one from a table and one from a topic; windows are grouped by a field of the first."""
    fields = [{"name": name, "type": "string"} for name in ("region", "city", "street")]
    file = {"configMap": "regions", "file": "regions.csv", "key": "country"}
    table = {"table": "geo.cities", "key": "id", "secretRef": {"name": "geo"}}
    sources = file, table, {"topic": "shop.streets"}
    spec["lookups"] = [
        {"name": f"by_{field['name']}", "on": "country", "from": source, "fields": [field]}
        for field, source in zip(fields, sources, strict=True)
    ]
    spec["aggregations"][0]["groupBy"] = ["country", "region"]


def looked_up(path: str, value: Any, *changes: str) -> Case:
    """An edit of a lookup."""
    return Case(put(f"lookups{path}", value), (RESTART, *changes), before=with_lookups)


def connected(spec: Document) -> None:
    spec["source"]["connectors"] = [{"name": "a", "class": "x.Source", "secrets": {"user": {"name": "s", "key": "u"}}}]


def listed(spec: Document) -> None:
    """Reads a list of topics, which exist."""
    spec["source"] |= {"topic": {"managed": False}, "topics": ["shop.a", "shop.b"]}


def one_topic(spec: Document) -> None:
    del spec["source"]["topics"]
    spec["source"]["topic"]["name"] = "shop.a"


def patterned(spec: Document) -> None:
    """Reads the topics of a pattern, of which two exist."""
    spec["source"] |= {"topic": {"managed": False}, "topicPattern": r"shop\.[ab]"}


def list_to_pattern(spec: Document) -> None:
    del spec["source"]["topics"]
    patterned(spec)


def pattern_to_list(spec: Document) -> None:
    del spec["source"]["topicPattern"]
    listed(spec)


def pattern_to_one_topic(spec: Document) -> None:
    del spec["source"]["topicPattern"]
    spec["source"]["topic"]["name"] = "shop.a"


def scaled(spec: Document) -> None:
    spec["processor"] = {"scaling": {"minReplicas": 2}}


EVENTS_RULE = {"name": "odd", "field": "amount", "groupBy": ["country"], "detector": {"type": "zscore"}}


def second_aggregation(spec: Document) -> None:
    spec["aggregations"].append({**spec["aggregations"][0], "name": "all", "groupBy": []})


def both(*edits: Callable[[Document], Any]) -> Callable[[Document], Any]:
    """One edit after the other."""

    def edit(spec: Document) -> None:
        for one in edits:
            one(spec)

    return edit


def refused(path: str, value: Any, text: str, *, before: Callable[[Document], Any] | None = None) -> Case:
    """What cannot be done to what is there."""
    return Case(put(path, value), None, text, before=before)


def invalid(path: str, value: Any, text: str, *, before: Callable[[Document], Any] | None = None) -> Case:
    """What no pipeline may have."""
    return Case(put(path, value), None, text, reason=("InvalidSpec",), before=before)


def scaling(member: str, value: Any, *changed: str) -> Case:
    """An edit of a pipeline that is scaled."""
    return Case(put(f"processor.scaling.{member}", value), changed, before=scaled)


FIRST = "aggregations[0]"

# By field. What a processor reads starts its processes anew, what it does not read leaves them alone.
with_stage = put("transform.python", STAGED)


def staged(member: str, value: Any) -> Case:
    """An edit of the Python stage, which no other workload notices."""
    return Case(put(f"transform.python.{member}", value), (STAGE,), before=with_stage)


with_scaled_stage = put("transform.python", {**STAGED, "scaling": {}})


def stage_scaling(member: str, value: Any, *changed: str) -> Case:
    """An edit of the scaling of the Python stage."""
    return Case(put(f"transform.python.scaling.{member}", value), changed, before=with_scaled_stage)


CASES: dict[str, list[Case]] = {
    "suspend": [Case(put("suspend", True), (SCALE,))],
    "reclaimPolicy": [Case(put("reclaimPolicy", "Delete"))],
    "source.kafka.bootstrapServers": [
        Case(put("source.kafka.bootstrapServers", "b:9092"), (RESTART,), before=elsewhere),
        invalid("source.kafka", {"bootstrapServers": "b:9092"}, "spec.source.topic.managed: Tidemill does not create"),
    ],
    "source.kafka.secretRef.name": [
        Case(put("source.kafka.secretRef", {"name": "crm"}), (RESTART,), before=elsewhere),
    ],
    "source.topic.name": [
        refused(
            "source.topic.name", "shop.other", "spec.source.topic.name: changed from shop.orders.events to shop.oth"
        ),
        invalid(
            "source.topic.name", "other.orders.events", "spec.source.topic.name: the topic belongs to another name"
        ),
    ],
    "source.topics": [
        Case(put("source.topics", ["shop.a", "shop.b", "shop.c"]), before=listed),
        Case(put("source.topics", ["shop.a"]), before=listed),
        Case(
            one_topic, None, "spec.source.topics: removed, but the pipeline's positions belong to a list", before=listed
        ),
        invalid("source.topics", ["shop.a"], "spec.source.topic.managed: Tidemill does not create or alter the topics"),
    ],
    "source.topicPattern": [
        Case(put("source.topicPattern", r"shop\.[bc]"), before=patterned),
        Case(list_to_pattern, before=listed),
        Case(pattern_to_list, before=patterned),
        Case(
            put("source.topicPattern", r"shop\.none"),
            None,
            r"spec.source.topicPattern: no topic that the pipeline may read matches shop\.none so far",
            reason=("Waiting",),
            before=patterned,
        ),
        Case(
            pattern_to_one_topic,
            None,
            "spec.source.topicPattern: removed, but the pipeline's positions belong to a pattern",
            before=patterned,
        ),
        invalid("source.topicPattern", "shop.(", "spec.source.topicPattern: is not a regular", before=patterned),
    ],
    "source.topic.managed": [Case(put("source.topic.managed", False))],
    "source.topic.partitions": [
        Case(put("source.topic.partitions", 5), (TOPIC, RESTART)),
        refused("source.topic.partitions", 2, "spec.source.topic.partitions: 2 is less than the 3 partitions"),
    ],
    "source.topic.replicationFactor": [
        # There is one broker.
        Case(
            put("source.topic.replicationFactor", 2),
            None,
            "spec.source.topic.replicationFactor: 2 ",
            ("NotSupported", "InvalidSpec"),
        ),
    ],
    "source.topic.startFrom": [Case(put("source.topic.startFrom", "latest"), (RESTART,))],
    "source.topic.retention": [Case(put("source.topic.retention", "1d"), (TOPIC,))],
    "source.topic.config": [
        Case(put("source.topic.config", {"segment.ms": "60000"}), (TOPIC,)),
        invalid(
            "source.topic.config", {"retention.ms": "5"}, "spec.source.topic.config.retention.ms: the platform sets"
        ),
    ],
    "source.fields.name": [Case(put("source.fields[5].name", "remark"), (RESTART,))],
    "source.fields.type": [
        Case(put("source.fields[5].type", "integer"), (RESTART,)),
        Case(put("source.fields[2].type", "integer"), (RESTART, *NEXT_VERSION)),
    ],
    "source.fields.required": [Case(put("source.fields[5].required", True), (RESTART,))],
    "source.fields.path": [
        Case(put("source.fields[5].path", "details.note"), (RESTART, RECOUNTED)),
        invalid("source.fields[5].path", "details..note", "spec.source.fields[5].path: is not a path of members"),
    ],
    "source.fields.default": [Case(put("source.fields[5].default", "none"), (RESTART, RECOUNTED))],
    "source.fields.format": [
        Case(
            put("source.fields[5].format", "us"), (RESTART, RECOUNTED), before=put("source.fields[5].type", "timestamp")
        ),
        invalid("source.fields[5].format", "us", "spec.source.fields[5].format: only timestamps have a format"),
    ],
    "source.fields.zone": [
        Case(
            put("source.fields[5].zone", "Europe/Berlin"),
            (RESTART, RECOUNTED),
            before=put("source.fields[5].type", "timestamp"),
        ),
    ],
    "source.fields.precision": [
        Case(put("source.fields[5].precision", 9), (RESTART,), before=decimal(5)),
        invalid("source.fields[5].precision", 9, "spec.source.fields[5].precision: only decimals have a precision"),
    ],
    "source.fields.scale": [
        Case(put("source.fields[5].scale", 3), (RESTART,), before=decimal(5)),
        Case(put("source.fields[3].scale", 3), (RESTART, *NEXT_VERSION), before=decimal(3)),
    ],
    "source.fields.from": [
        Case(put("source.fields[5].from", "header"), (RESTART, RECOUNTED)),
        invalid("source.fields[5].from", "offset", "spec.source.fields[5].type: the record's offset is of type"),
    ],
    "source.format.type": [
        Case(put("source.format", {"type": "jsonSchema"}), (RESTART, RECOUNTED, f"remove {INGEST}"))
    ],
    "source.format.registry.url": [
        Case(put("source.format.registry.url", "http://b:8081"), (RESTART, RECOUNTED), before=with_registry),
    ],
    "source.format.registry.secretRef.name": [
        Case(put("source.format.registry.secretRef", {"name": "r"}), (RESTART, RECOUNTED), before=with_registry),
    ],
    "source.webhooks.name": [hook_edit("name", "b")],
    "source.webhooks.signature": [
        Case(
            put("source.webhooks[0]", {"name": "a", "signature": "github", "secretRef": {"name": "s", "key": "k"}}),
            before=with_hook,
        ),
        invalid(
            "source.webhooks[0].signature",
            "stripe",
            "spec.source.webhooks[0].header: the signature of stripe has no such setting",
            before=with_hook,
        ),
    ],
    "source.webhooks.secretRef.name": [hook_edit("secretRef.name", "t")],
    "source.webhooks.secretRef.key": [hook_edit("secretRef.key", "l")],
    "source.webhooks.header": [hook_edit("header", "X-C")],
    "source.webhooks.algorithm": [hook_edit("algorithm", "sha512")],
    "source.webhooks.encoding": [hook_edit("encoding", "base64")],
    "source.webhooks.prefix": [hook_edit("prefix", "v1=")],
    "source.webhooks.signed": [hook_edit("signed", "v0:{timestamp}:{body}")],
    "source.webhooks.timestampHeader": [hook_edit("timestampHeader", "X-D")],
    "source.webhooks.tolerance": [
        hook_edit("tolerance", "2m"),
        invalid(
            "source.webhooks[0].tolerance", "2d", "spec.source.webhooks[0].tolerance: is out of bou", before=with_hook
        ),
    ],
    "source.webhooks.idHeader": [hook_edit("idHeader", "X-E")],
    "source.mqtt.broker": [
        broker_edit("broker", "mqtt://other:1884"),
        Case(put("source.mqtt", {"broker": "mqtt://broker", "topics": ["#"]}), (f"create {BRIDGE}",)),
    ],
    "source.mqtt.topics": [
        broker_edit("topics", ["#"]),
        invalid("source.mqtt.topics", ["a#"], "spec.source.mqtt.topics[0]: # matches all", before=with_broker),
    ],
    "source.mqtt.qos": [broker_edit("qos", 0)],
    "source.mqtt.version": [broker_edit("version", "v3.1.1")],
    "source.mqtt.clientId": [broker_edit("clientId", "a")],
    "source.mqtt.key": [broker_edit("key", "none")],
    "source.mqtt.maxInFlight": [broker_edit("maxInFlight", 10)],
    "source.mqtt.secretRef.name": [broker_edit("secretRef.name", "t")],
    "source.format.envelope": [Case(put("source.format", {"envelope": "connect"}), (RESTART, RECOUNTED))],
    "source.format.deletes": [Case(put("source.format", {"deletes": "ignore"}), (RESTART, RECOUNTED))],
    "source.connectors.name": [
        Case(
            put("source.connectors[0].name", "b"),
            ("remove connector shop.orders.a", "create connector shop.orders.b"),
            before=connected,
        ),
    ],
    "source.connectors.class": [Case(put("source.connectors[0].class", "x.Y"), (CONNECTOR,), before=connected)],
    "source.connectors.tasks": [Case(put("source.connectors[0].tasks", 2), (CONNECTOR,), before=connected)],
    "source.connectors.paused": [Case(put("source.connectors[0].paused", True), (CONNECTOR,), before=connected)],
    "source.connectors.config": [
        Case(put("source.connectors[0].config", {"table": "t"}), (CONNECTOR,), before=connected),
        invalid(
            "source.connectors[0].config",
            {"topics": "t"},
            "spec.source.connectors[0].config.topics: only sink connectors have this",
            before=connected,
        ),
    ],
    "source.connectors.secrets": [
        Case(put("source.connectors[0].secrets.user.key", "v"), (CONNECTOR,), before=connected),
    ],
    "source.format.columns": [
        invalid("source.format", {"columns": ["a"]}, "spec.source.format.columns: json has no columns"),
    ],
    "source.format.delimiter": [
        invalid("source.format", {"delimiter": ";"}, "spec.source.format.delimiter: json has no delimiter"),
    ],
    "source.strict": [Case(put("source.strict", True), (RESTART,))],
    "source.key": [refused("source.key", "note", "spec.source.key: changed from country to note")],
    "source.dedupe.field": [
        Case(put("source.dedupe.field", "country"), (RESTART, RECOUNTED), before=with_dedupe),
        invalid("source.dedupe.field", "amount", "spec.source.dedupe.field: is of type number", before=with_dedupe),
    ],
    "source.dedupe.window": [
        Case(put("source.dedupe.window", "2h"), (RESTART, RECOUNTED), before=with_dedupe),
        Case(put("source.dedupe", {"field": "note", "window": "1h"}), ("create table _dedupe", RESTART, RECOUNTED)),
        Case(put("source.dedupe", None), (RESTART, RECOUNTED), before=with_dedupe),
    ],
    "source.eventTime.field": [Case(put("source.eventTime.field", "sent"), (RESTART, RECOUNTED))],
    "source.eventTime.maxDisorder": [Case(put("source.eventTime.maxDisorder", "1m"), (RESTART,))],
    "source.eventTime.idleTimeout": [Case(put("source.eventTime.idleTimeout", "1m"), (RESTART,))],
    "source.eventTime.maxFuture": [Case(put("source.eventTime.maxFuture", "2h"), (RESTART,))],
    "source.eventTime.maxAdvance": [Case(put("source.eventTime.maxAdvance", "2d"), (RESTART,))],
    "lookups.name": [looked_up("[0].name", "regions")],
    "lookups.on": [looked_up("[0].on", "note", RECOUNTED)],
    "lookups.from.configMap": [looked_up("[0].from.configMap", "places", RECOUNTED)],
    "lookups.from.file": [looked_up("[0].from.file", "regions.json", RECOUNTED)],
    "lookups.from.key": [looked_up("[0].from.key", "code", RECOUNTED)],
    "lookups.from.table": [looked_up("[1].from.table", "geo.towns", RECOUNTED)],
    "lookups.from.query": [
        looked_up(
            "[1].from", {"query": "SELECT * FROM geo.cities", "key": "id", "secretRef": {"name": "geo"}}, RECOUNTED
        )
    ],
    "lookups.from.secretRef.name": [looked_up("[1].from.secretRef.name", "other")],
    "lookups.from.refresh": [looked_up("[1].from.refresh", "10s")],
    "lookups.from.topic": [looked_up("[2].from.topic", "shop.roads", RECOUNTED)],
    "lookups.fields.name": [looked_up("[1].fields[0].name", "town", RECOUNTED)],
    "lookups.fields.type": [
        looked_up("[1].fields[0].type", "integer"),
        looked_up("[0].fields[0].type", "integer", *NEXT_VERSION),
    ],
    "lookups.fields.path": [looked_up("[0].fields[0].path", "area", RECOUNTED)],
    "lookups.fields.format": [
        looked_up("[2].fields[0]", {"name": "street", "type": "timestamp", "format": "us"}, RECOUNTED)
    ],
    "lookups.fields.zone": [
        looked_up("[2].fields[0]", {"name": "street", "type": "timestamp", "zone": "Europe/Oslo"}, RECOUNTED)
    ],
    "lookups.fields.precision": [
        looked_up("[2].fields[0]", {"name": "street", "type": "decimal", "scale": 2, "precision": 9})
    ],
    "lookups.fields.scale": [
        looked_up("[2].fields[0]", {"name": "street", "type": "decimal", "scale": 2}),
        looked_up("[0].fields[0]", {"name": "region", "type": "decimal", "scale": 2}, *NEXT_VERSION),
    ],
    "transform.derive.name": [
        Case(
            both(put("transform.derive[0].name", "total"), put(f"{FIRST}.metrics[1].field", "total")),
            (TABLE, RESTART, RECOUNTED),
        )
    ],
    "transform.derive.expression": [
        Case(put("transform.derive[0].expression", "amount * 3"), (RESTART, RECOUNTED)),
        Case(put("transform.derive[0].expression", "amount > 3"), (RESTART, *NEXT_VERSION)),
        invalid("transform.derive[0].expression", "note", "spec.aggregations[0].metrics[1].field: sum takes integer"),
    ],
    "transform.python.configMap": [
        staged("configMap", "cleaning"),
        Case(put("transform.python", STAGED), refused="spec.transform.python: was added", changes=None),
        Case(put("transform.python", None), None, "spec.transform.python: was taken out", before=with_stage),
        invalid("transform.python", {**STAGED, "image": "shop:1"}, "spec.transform.python.configMap: the file must be"),
    ],
    "transform.python.image": [
        Case(
            put("transform.python.image", "registry.example/shop:2"),
            (STAGE,),
            before=put("transform.python", {**IN_IMAGE, "image": "registry.example/shop:1"}),
        )
    ],
    "transform.python.file": [
        staged("file", "cleaning.py"),
        invalid(
            "transform.python", {**STAGED, "file": "a/b.py"}, "spec.transform.python.file: the keys of a ConfigMap"
        ),
    ],
    "transform.python.function": [staged("function", "clean")],
    "transform.python.timeout": [
        staged("timeout", "1m"),
        invalid("transform.python", {**STAGED, "timeout": "11m"}, "spec.transform.python.timeout: the timeout must be"),
    ],
    "transform.python.replicas": [
        staged("replicas", 3),
        invalid("transform.python", {**STAGED, "replicas": 4}, "spec.transform.python.replicas: is more than the"),
    ],
    "transform.python.scaling.mode": [stage_scaling("mode", "external", STAGE)],
    "transform.python.scaling.minReplicas": [stage_scaling("minReplicas", 3, STAGE)],
    "transform.python.scaling.maxReplicas": [
        stage_scaling("maxReplicas", 2),
        invalid(
            "transform.python",
            {**STAGED, "scaling": {"maxReplicas": 4}},
            "spec.transform.python.scaling.maxReplicas: is more than the",
        ),
    ],
    "transform.python.scaling.lagThreshold": [stage_scaling("lagThreshold", 5000)],
    "transform.python.scaling.target.freshness": [stage_scaling("target", {"freshness": "30s"})],
    "transform.python.scaling.catchUp": [stage_scaling("catchUp", "1m")],
    "transform.python.scaling.targetUtilization": [stage_scaling("targetUtilization", 80)],
    "transform.python.scaling.scaleUpCooldown": [stage_scaling("scaleUpCooldown", "2m")],
    "transform.python.scaling.scaleDownStabilization": [stage_scaling("scaleDownStabilization", "20m")],
    "transform.python.scaling.maxStepUp": [stage_scaling("maxStepUp", 1)],
    "transform.python.scaling.maxStepDown": [stage_scaling("maxStepDown", 1)],
    "transform.python.scaling.pollInterval": [stage_scaling("pollInterval", "20s")],
    "transform.python.scaling.lookback": [stage_scaling("lookback", "3m")],
    "transform.python.scaling.scaleToZeroAfter": [stage_scaling("scaleToZeroAfter", "1h")],
    "transform.python.scaling.dryRun": [stage_scaling("dryRun", True)],
    "transform.python.resources.requests.cpu": [staged("resources.requests.cpu", "500m")],
    "transform.python.resources.requests.memory": [staged("resources.requests.memory", "512Mi")],
    "transform.python.resources.limits.cpu": [staged("resources.limits.cpu", "1")],
    "transform.python.resources.limits.memory": [staged("resources.limits.memory", "1Gi")],
    "transform.filter": [Case(put("transform.filter", "amount > 0"), (RESTART, RECOUNTED))],
    "aggregations.name": [
        Case(
            both(put(f"{FIRST}.name", "by_land"), put("anomalies[0].aggregation", "by_land")),
            ("create table by_land_v1", RESTART),
        )
    ],
    "aggregations.groupBy": [Case(put(f"{FIRST}.groupBy", ["note"]), (RESTART, *NEXT_VERSION))],
    "aggregations.window.type": [
        Case(put(f"{FIRST}.window", {"type": "session", "gap": "1m"}), (RESTART, *NEXT_VERSION))
    ],
    "aggregations.window.size": [Case(put(f"{FIRST}.window.size", "2h"), (RESTART, *NEXT_VERSION))],
    "aggregations.window.zone": [
        invalid(f"{FIRST}.window.zone", "Europe/Oslo", "spec.aggregations[0].window.size: is not a number of days"),
        Case(
            put(f"{FIRST}.window.zone", "Europe/Oslo"),
            (RESTART, *NEXT_VERSION),
            before=put(f"{FIRST}.window", {"type": "tumbling", "size": "1d"}),
        ),
    ],
    "aggregations.window.offset": [Case(put(f"{FIRST}.window.offset", "15m"), (RESTART, *NEXT_VERSION))],
    "aggregations.window.hop": [
        Case(
            put(f"{FIRST}.window.hop", "15m"),
            (RESTART, *NEXT_VERSION),
            before=put(f"{FIRST}.window", {"type": "hopping", "size": "1h", "hop": "30m"}),
        )
    ],
    "aggregations.window.gap": [
        invalid(f"{FIRST}.window.gap", "1m", "spec.aggregations[0].window.gap: a tumbling window takes no gap"),
        Case(
            put(f"{FIRST}.window.gap", "2m"),
            (RESTART, *NEXT_VERSION),
            before=put(f"{FIRST}.window", {"type": "session", "gap": "1m"}),
        ),
    ],
    "aggregations.window.maxLength": [
        invalid(f"{FIRST}.window.maxLength", "1m", "spec.aggregations[0].window.maxLength: a tumbling window takes no"),
        Case(
            put(f"{FIRST}.window.maxLength", "1h"),
            (RESTART, *NEXT_VERSION),
            before=put(f"{FIRST}.window", {"type": "session", "gap": "1m"}),
        ),
    ],
    "aggregations.window.grace": [Case(put(f"{FIRST}.window.grace", "1m"), (RESTART,))],
    "aggregations.latePolicy": [
        Case(put(f"{FIRST}.latePolicy", "drop"), (RESTART,)),
        Case(put(f"{FIRST}.latePolicy", "reopen"), (TABLE, RESTART)),
    ],
    "aggregations.metrics.name": [
        Case(both(put(f"{FIRST}.metrics[0].name", "sales"), put("anomalies[0].metric", "sales")), (RESTART,))
    ],
    "aggregations.metrics.function": [
        Case(put(f"{FIRST}.metrics[1].function", "max"), (TABLE, RESTART)),
        Case(put(f"{FIRST}.metrics[1].function", "distinct"), (TABLE, RESTART)),
    ],
    "aggregations.metrics.field": [Case(put(f"{FIRST}.metrics[1].field", "weight"), (TABLE, RESTART))],
    "aggregations.metrics.where": [
        Case(put(f"{FIRST}.metrics[1].where", "weight > 1"), (TABLE, RESTART)),
        Case(
            put(f"{FIRST}.metrics[1].where", "( WEIGHT>1 )"),
            (RESTART,),
            before=put(f"{FIRST}.metrics[1].where", "weight > 1"),
        ),
        invalid(f"{FIRST}.metrics[1].where", "weight", "spec.aggregations[0].metrics[1].where: is of type number, not"),
    ],
    "aggregations.metrics.expression": [
        Case(
            put(f"{FIRST}.metrics[1].expression", "orders * 3"),
            (RESTART,),
            before=put(f"{FIRST}.metrics[1]", {"name": "revenue", "expression": "orders * 2"}),
        ),
        invalid(
            f"{FIRST}.metrics[1].expression", "orders", "spec.aggregations[0].metrics[1].expression: sum takes no expr"
        ),
        invalid(
            f"{FIRST}.metrics[1]",
            {"name": "revenue", "expression": "order * 2"},
            "spec.aggregations[0].metrics[1].expression: unknown metric 'order'",
        ),
    ],
    "aggregations.metrics.q": [
        invalid(f"{FIRST}.metrics[1].q", 0.5, "spec.aggregations[0].metrics[1].q: sum takes no q"),
        Case(
            put(f"{FIRST}.metrics[1]", {"name": "median", "function": "quantile", "field": "amount", "q": 0.5}),
            (TABLE, RESTART),
        ),
    ],
    "aggregations.metrics.k": [
        invalid(f"{FIRST}.metrics[1].k", 5, "spec.aggregations[0].metrics[1].k: sum takes no k"),
        Case(put(f"{FIRST}.metrics[1]", {"name": "prices", "function": "topk", "field": "amount"}), (TABLE, RESTART)),
        Case(
            put(f"{FIRST}.metrics[1].k", 100),
            (RESTART,),
            before=put(f"{FIRST}.metrics[1]", {"name": "prices", "function": "topk", "field": "amount", "k": 5}),
        ),
    ],
    "aggregations.retention": [Case(put(f"{FIRST}.retention", "30d"))],
    "anomalies.name": [Case(put("anomalies[0].name", "strange"), (RESTART,))],
    "anomalies.aggregation": [
        Case(put("anomalies[0].aggregation", "all"), (RESTART,), before=second_aggregation),
    ],
    "anomalies.metric": [Case(put("anomalies[0].metric", "revenue"), (RESTART,))],
    "anomalies.field": [
        Case(put("anomalies[0].field", "gross"), (RESTART,), before=put("anomalies[0]", EVENTS_RULE)),
        invalid("anomalies[0].field", "amount", "spec.anomalies[0].field: the rule already watches metric orders"),
    ],
    "anomalies.groupBy": [
        Case(put("anomalies[0].groupBy", ["note"]), (RESTART,), before=put("anomalies[0]", EVENTS_RULE)),
        invalid("anomalies[0].groupBy", ["note"], "spec.anomalies[0].groupBy: a rule that watches a metric uses the"),
    ],
    "anomalies.detector.type": [Case(put("anomalies[0].detector.type", "ewma"), (RESTART,))],
    "anomalies.detector.threshold": [Case(put("anomalies[0].detector.threshold", 5.0), (RESTART,))],
    "anomalies.detector.warmup": [Case(put("anomalies[0].detector.warmup", 12), (RESTART,))],
    "anomalies.detector.cooldown": [Case(put("anomalies[0].detector.cooldown", "3h"), (RESTART,))],
    "anomalies.detector.weight": [
        Case(put("anomalies[0].detector.weight", 0.5), (RESTART,), before=put("anomalies[0].detector.type", "ewma")),
        invalid("anomalies[0].detector.weight", 0.5, "spec.anomalies[0].detector.weight: zscore takes no weight"),
    ],
    "anomalies.detector.span": [
        Case(put("anomalies[0].detector.span", 50), (RESTART,), before=put("anomalies[0].detector.type", "mad"))
    ],
    "anomalies.detector.period": [
        Case(
            put("anomalies[0].detector.period", "week"),
            (RESTART,),
            before=put("anomalies[0].detector.type", "seasonal"),
        )
    ],
    "events.store": [Case(put("events.store", True), ("create table _events", RESTART))],
    "events.retention": [Case(put("events.retention", "1d"), (RESTART,))],
    "deadLetters.retention": [Case(put("deadLetters.retention", "1d"), ())],
    "deadLetters.quota": [Case(put("deadLetters.quota", "2Gi"), (RESTART,))],
    "anomalyHistory.retention": [Case(put("anomalyHistory.retention", "1d"), ())],
    "anomalyHistory.quota": [Case(put("anomalyHistory.quota", "2Gi"), (RESTART,))],
    "results.publish": [
        Case(put("results.publish", False), (RESTART,)),
        Case(put("results.publish", True), (f"create {RESULTS}", RESTART), before=put("results.publish", False)),
    ],
    "processor.flushInterval": [Case(put("processor.flushInterval", "1s"), (RESTART,))],
    "processor.replicas": [
        Case(put("processor.replicas", 3), (SCALE,)),
        invalid("processor.replicas", 4, "spec.processor.replicas: is more than the topic's 3 partitions"),
    ],
    "processor.scaling.mode": [scaling("mode", "external", PROCESSOR)],
    "processor.scaling.minReplicas": [scaling("minReplicas", 3, SCALE)],
    "processor.scaling.maxReplicas": [
        scaling("maxReplicas", 2),
        invalid("processor.scaling.maxReplicas", 4, "spec.processor.scaling.maxReplicas: ", before=scaled),
    ],
    "processor.scaling.lagThreshold": [scaling("lagThreshold", 5000)],
    "processor.scaling.target.freshness": [scaling("target", {"freshness": "30s"})],
    "processor.scaling.catchUp": [scaling("catchUp", "1m")],
    "processor.scaling.targetUtilization": [
        scaling("targetUtilization", 80),
        invalid("processor.scaling.targetUtilization", 90, "spec.processor.scaling.targetUtilization: ", before=scaled),
    ],
    "processor.scaling.scaleUpCooldown": [scaling("scaleUpCooldown", "2m")],
    "processor.scaling.scaleDownStabilization": [scaling("scaleDownStabilization", "20m")],
    "processor.scaling.maxStepUp": [scaling("maxStepUp", 1)],
    "processor.scaling.maxStepDown": [scaling("maxStepDown", 1)],
    "processor.scaling.pollInterval": [scaling("pollInterval", "20s")],
    "processor.scaling.lookback": [scaling("lookback", "3m")],
    "processor.scaling.scaleToZeroAfter": [scaling("scaleToZeroAfter", "1h")],
    "processor.scaling.dryRun": [scaling("dryRun", True)],
    "processor.resources.requests.cpu": [Case(put("processor.resources.requests.cpu", "500m"), (PROCESSOR,))],
    "processor.resources.requests.memory": [Case(put("processor.resources.requests.memory", "512Mi"), (PROCESSOR,))],
    "processor.resources.limits.cpu": [Case(put("processor.resources.limits.cpu", "1"), (PROCESSOR,))],
    "processor.resources.limits.memory": [Case(put("processor.resources.limits.memory", "1Gi"), (PROCESSOR,))],
    "ingest.enabled": [Case(put("ingest.enabled", False), (f"remove {INGEST}",))],
    "api.enabled": [Case(put("api.enabled", False), (f"remove {API}",))],
    "api.dedicated": [Case(put("api.dedicated", True), (f"create {OWN_API}", f"remove {API}"))],
    "api.cacheTtl": [Case(put("api.cacheTtl", "1m"))],
    "auth.required": [Case(put("auth.required", True))],
}
# A parameter that is not above: what it does is the same for each.
for parameter in PARAMETERS.values():
    member, function = parameter.alias, parameter.functions[0]
    if (field_path := f"aggregations.metrics.{member}") not in CASES:
        example = {"name": "m", "function": function, "field": "amount"}
        example |= parameters_for(function, {"weight": "number"})
        refusal = f"spec.aggregations[0].metrics[1].{member}: sum takes no {member}"
        CASES[field_path] = [
            invalid(f"{FIRST}.metrics[1].{member}", example[member], refusal),
            Case(put(f"{FIRST}.metrics[1]", example), (TABLE, RESTART)),
        ]
ROWS = [(path, number, case) for path, cases in CASES.items() for number, case in enumerate(cases)]
IDS = [f"{path}-{number}" for path, number, _ in ROWS]


def leaves(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Every field that holds no further model, by its path; items of lists stand at the list's."""
    for name, field in model.model_fields.items():
        at = f"{path}{field.alias or name}"
        parts = (field.annotation, *field.metadata)
        inner = [found for part in parts for found in _kinds(part) if isinstance(found, type)]
        inner = [model for model in inner if issubclass(model, BaseModel)]
        for kind in inner:
            yield from leaves(kind, f"{at}.")
        if not inner:
            yield at


def _kinds(annotation: Any) -> Iterator[Any]:
    if isinstance(annotation, Kinds):
        yield annotation.written
    elif get_origin(annotation) in (Union, UnionType, list, Annotated):
        for part in get_args(annotation):
            yield from _kinds(part)
    else:
        yield annotation


def test_every_field_has_a_case() -> None:
    """A field that is added needs one: say here what an edit of it changes, or why it is refused."""
    assert set(leaves(PipelineSpec)) == set(CASES)
    assert all(CASES.values())


def told(found: tuple[Change, ...]) -> set[str]:
    """What is changed, in words; of processors, what happens to them."""
    return {text for change in found for text in _told(change)}


def _told(change: Change) -> Iterator[str]:
    if f"{change.kind} {change.name}" != PROCESSOR or change.action != "change":
        yield f"{change.action} {change.kind} {change.name}"
        return
    members = {difference.member for difference in change.differences}
    words = {"processes": RESTART, "replicas": SCALE}
    yield from {words.get(member, f"change {PROCESSOR}") for member in members}


def documents(case: Case) -> tuple[Document, Document]:
    """The resource before and after the edit."""
    before = base()
    if case.before is not None:
        case.before(before["spec"])
    after = copy.deepcopy(before)
    case.edit(after["spec"])
    after["metadata"]["generation"] = 2
    return before, after


def apply(document: Document, world: MemoryWorld, previous: Document | None = None) -> Document:
    told = reconcile(document, platform=PLATFORM, actuators=world.actuators, previous=previous, now=NOON)
    if "ConnectorsReady" not in {item["type"] for item in told["conditions"]}:
        return told
    # Connectors are as they should be one pass after a change of them.
    return reconcile(document, platform=PLATFORM, actuators=world.actuators, previous=told, now=NOON)


@pytest.fixture
def world() -> MemoryWorld:
    """A world in which the platform has a Kafka Connect, and topics of others."""
    made = MemoryWorld(connect=KafkaConnect(MemoryConnect()))
    made.kafka.topics = {name: LiveTopic(2, 1, name) for name in ("shop.a", "shop.b", "shop.c")}
    made.kafka.configs = {name: {} for name in made.kafka.topics}
    return made


def true(status: Document) -> dict[str, str]:
    return {item["type"]: item["reason"] for item in status["conditions"] if item["status"] == "True"}


def state(world: MemoryWorld) -> Any:
    """Everything that there is, without the writes that led to it."""
    running = {name: dict(workloads) for name, workloads in world.runtime.running.items()}
    return copy.deepcopy((world.kafka.topics, world.kafka.configs, world.postgres.schemas, running))


@pytest.mark.parametrize(("path", "number", "case"), ROWS, ids=IDS)
def test_an_edit_changes_what_it_should(world: MemoryWorld, path: str, number: int, case: Case) -> None:
    """What `tidemill plan` tells before it happens is all that differs; what cannot be done is refused."""
    before, after = documents(case)
    first = apply(before, world)
    assert "Stalled" not in true(first), first
    ran, unedited = state(world), world.runtime.running["shop", "orders"]["orders-processor"]
    world.take_writes()
    if case.changes is not None:
        wanted = {text if text.split()[0] in VERBS else f"change {text}" for text in (CONFIG, *case.changes)}
        assert told(planned(before, after, world)) == wanted
    second = apply(after, world, first)
    if case.changes is None:
        message = next(item["message"] for item in second["conditions"] if item["type"] == "Stalled")
        assert message.startswith(case.refused)
        assert message.endswith("; the accepted spec stays in force")
        assert true(second) == {**true(first), "Stalled": true(second)["Stalled"]}
        assert true(second)["Stalled"] in case.reason
        assert (state(world), world.take_writes()) == (ran, [])
    else:
        assert set(true(second)) - {"Suspended"} == set(true(first))
        edited = world.runtime.running["shop", "orders"]["orders-processor"]
        assert (edited.revision != unedited.revision) == (RESTART in case.changes)
        assert (world.postgres.schemas["shop__orders"].generation == 2) == (RESTART in case.changes)


@pytest.mark.parametrize(("path", "number", "case"), ROWS, ids=IDS)
def test_taking_an_edit_back_leads_to_where_it_was(world: MemoryWorld, path: str, number: int, case: Case) -> None:
    """The same workloads with the same settings; what was only added stays: partitions, columns, tables, topics."""
    before, after = documents(case)
    first = apply(before, world)
    ran = state(world)
    second = apply(after, world, first)
    back = {**before, "metadata": {**before["metadata"], "generation": 3}}
    third = apply(back, world, second)
    if path == "source.topic.partitions" and case.changes is not None:
        assert true(third)["Stalled"] == "NotSupported"  # Kafka takes none away
        return
    assert true(third) == true(first)
    assert world.runtime.running["shop", "orders"].keys() == ran[3]["shop", "orders"].keys()
    restarted = RESTART in (case.changes or ())
    assert world.postgres.schemas["shop__orders"].generation == (3 if restarted else 1)
    for name, workload in world.runtime.running["shop", "orders"].items():
        known = ran[3]["shop", "orders"][name]
        assert (workload.replicas, workload.environment, workload.resources) == (
            known.replicas,
            known.environment,
            known.resources,
        )
        if not restarted:
            assert workload == known
    world.take_writes()
    assert (apply(back, world, third), world.take_writes()) == (third, [])


def planned(before: Document, after: Document, world: MemoryWorld) -> tuple[Change, ...]:
    """As `tidemill plan` sees it."""
    schema = world.postgres.observe("shop__orders")
    live = LiveFacts(dict(world.kafka.topics), world.kafka.brokers(), schema, found=tuple(world.kafka.topics))
    wanted = plan_of(after, live)
    return changes(wanted, live, before=plan_of(before, live), configs=world.kafka.configs)


def plan_of(document: Document, live: LiveFacts) -> Plan:
    return build_plan(AnalyticsPipeline.model_validate(document), PLATFORM, document["metadata"]["generation"], live)


def test_processors_read_nothing_of_what_is_not_counted_as_read() -> None:
    """Their code names none of these members, so a change of one cannot matter to them."""
    spelled = {path.rsplit(".", 1)[-1] for path in UNREAD} - {"config", "retention"}
    members = {re.sub(r"(?<!^)([A-Z])", lambda found: f"_{found[1].lower()}", name) for name in spelled}
    for file in Path(tidemill_processor.__file__).parent.rglob("*.py"):
        named = {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}
        assert not named & members, file.name
        for chain in re.findall(r"[\w.]*\.(?:topic\.config|retention)\b", file.read_text()):
            assert chain.endswith("events.retention"), (file.name, chain)
