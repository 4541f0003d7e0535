"""Cases of edits of the fields of `source` and `lookups`."""

from __future__ import annotations

from typing import Any

from spec_edits.edits import (
    BRIDGE,
    CONNECTOR,
    INGEST,
    NEXT_VERSION,
    RECOUNTED,
    RESTART,
    TOPIC,
    Case,
    Document,
    decimal,
    invalid,
    put,
    refused,
)


def with_registry(spec: Document) -> None:
    spec["source"]["format"] = {"type": "avro", "registry": {"url": "http://a:8081"}}


def with_hook(spec: Document) -> None:
    hook = {"name": "a", "signature": "hmac", "header": "X-A", "timestampHeader": "X-B", "tolerance": "1m"}
    spec["source"]["webhooks"] = [{**hook, "secretRef": {"name": "s", "key": "k"}}]


def with_broker(spec: Document) -> None:
    spec["source"]["mqtt"] = {"broker": "mqtts://broker", "topics": ["plant/+/temp"], "secretRef": {"name": "s"}}


def hook_edit(member: str, value: Any) -> Case:
    """Return the case of an edit of a webhook, which ingest reads at once."""
    return Case(put(f"source.webhooks[0].{member}", value), before=with_hook)


def broker_edit(member: str, value: Any) -> Case:
    """Return the case of an edit of a broker, which replaces the bridge."""
    return Case(put(f"source.mqtt.{member}", value), (BRIDGE,), before=with_broker)


def elsewhere(spec: Document) -> None:
    spec["source"] |= {"kafka": {"bootstrapServers": "a:9092"}, "topic": {"name": "crm.orders", "managed": False}}


def with_dedupe(spec: Document) -> None:
    """Use the field note as the id of events."""
    spec["source"]["dedupe"] = {"field": "note", "window": "1h"}


def with_lookups(spec: Document) -> None:
    """Add a lookup from a file, a table and a topic each. Windows are grouped by a field of the first."""
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
    """Return the case of an edit of a lookup."""
    return Case(put(f"lookups{path}", value), (RESTART, *changes), before=with_lookups)


def connected(spec: Document) -> None:
    spec["source"]["connectors"] = [{"name": "a", "class": "x.Source", "secrets": {"user": {"name": "s", "key": "u"}}}]


def listed(spec: Document) -> None:
    """Read a list of existing topics."""
    spec["source"] |= {"topic": {"managed": False}, "topics": ["shop.a", "shop.b"]}


def one_topic(spec: Document) -> None:
    del spec["source"]["topics"]
    spec["source"]["topic"]["name"] = "shop.a"


def patterned(spec: Document) -> None:
    """Read the topics of a pattern, of which two exist."""
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


SOURCE_CASES: dict[str, list[Case]] = {
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
        # The world has a single broker.
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
}
