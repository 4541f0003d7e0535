"""The model of `spec.source`: the topic, the format of its records, the fields and event time."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from tidemill_contract.decimals import DECIMAL, MAX_DIGITS, decimal_type
from tidemill_contract.duration import Duration
from tidemill_contract.functions.base import FieldType, Name
from tidemill_contract.resource.inputs.dedupe import DedupeSpec
from tidemill_contract.resource.inputs.mqtt import MqttSpec
from tidemill_contract.resource.inputs.patterns import MAX_CHARACTERS
from tidemill_contract.resource.inputs.webhooks import WebhookSpec
from tidemill_contract.resource.kinds.any_json import Path, Scalar
from tidemill_contract.resource.kinds.base import Model
from tidemill_contract.resource.kinds.connectors import ConnectorSpec
from tidemill_contract.resource.kinds.formats import Format, FormatSpec
from tidemill_contract.resource.kinds.kafka import KafkaSpec
from tidemill_contract.resource.paths import Steps, exploded_array, read_path, show_path

TopicName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9._-]{1,249}$", max_length=249)]
MAX_TOPICS = 64
TopicPattern = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CHARACTERS)]
Origin = Literal["value", "envelope", "key", "header", "timestamp", "partition", "offset"]
ConfigValue = Annotated[str, StringConstraints(max_length=256)]


class TopicSpec(Model):
    """The Kafka topic that events arrive on."""

    name: TopicName | None = Field(None, description="Name of the topic. Default: <namespace>.<name>.events.")
    managed: bool = Field(True, description="False: Tidemill uses an existing topic, and never alters the topic.")
    partitions: int | None = Field(None, ge=1, le=1024, description="Number of partitions, which can only grow.")
    replication_factor: int | None = Field(
        None, ge=1, le=15, description="Number of copies of each partition. Default: a setting of the platform."
    )
    start_from: Annotated[str, StringConstraints(max_length=40)] = Field(
        "earliest",
        description="Where a new pipeline starts to read an existing topic: earliest, latest or an RFC 3339 time.",
    )
    retention: Duration = Field("7d", description="How long Kafka keeps events.")
    config: dict[str, ConfigValue] = Field(
        default_factory=dict,
        max_length=32,
        description="Further configs of the topic. Tidemill maintains these configs.",
    )


class FieldSpec(Model):
    """One field of the event."""

    name: Name = Field(description="Name of the field. Without path, the JSON member has the same name.")
    type: Literal[FieldType, "strings", "json"] = Field(
        description="Type of the value. timestamp: RFC 3339, epoch milliseconds, or the given format. decimal: an exact"
        " number with a fixed number of digits after the point (scale). strings: an array of strings, for topk and"
        " distinct. json: any value, which is stored only if raw events are stored."
    )
    required: bool = Field(
        False, description="True: an event in which the field is absent or null becomes a dead letter."
    )
    path: Path | None = Field(
        None,
        description="Path of the value, such as order.items[0].sku. If a name has dots, write the path as a list of"
        " names and indexes. order.items[].sku explodes the array: each element becomes an event. Default: the member"
        " with the name of the field. With from: header, path is the name of the header.",
    )
    default: Scalar | None = Field(None, description="Value of the field if it is absent or null in the event.")
    format: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = Field(
        None,
        description="Format of a timestamp: rfc3339, s, ms, us or ns since 1970, or a strptime pattern, such as"
        " %d.%m.%Y %H:%M. Default: rfc3339. The format rfc3339 also accepts epoch milliseconds.",
    )
    zone: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = Field(
        None, description="Time zone of timestamps without a zone, such as Europe/Berlin. Default for patterns: UTC."
    )
    precision: int | None = Field(
        None, ge=1, le=MAX_DIGITS, description=f"Maximum number of digits of a decimal. Default: {MAX_DIGITS}."
    )
    scale: int | None = Field(
        None,
        ge=0,
        le=MAX_DIGITS,
        description="Number of digits of a decimal after the point. Every decimal needs a scale.",
    )
    taken_from: Origin | None = Field(
        None,
        alias="from",
        description="The part of the Kafka record with the field's value. Default: value. With from: envelope, path is"
        " a path in the envelope around the event. With from: timestamp, partition or offset, the field has this value"
        " of the record.",
    )

    @property
    def kind(self) -> str:
        """The field's type, including a decimal's scale."""
        return self.type if self.type != DECIMAL or self.scale is None else decimal_type(self.scale)

    @property
    def origin(self) -> Origin:
        """The part of the record that contains the value."""
        return self.taken_from or "value"

    @property
    def steps(self) -> Steps:
        """The path in the event. A value outside the event has a label, such as `<header> region`."""
        return self.member_path if self.origin == "value" else (f"<{self.origin}> {self.name}",)

    @property
    def member_path(self) -> Steps:
        """The path in the spec, or the name of the field if there is no path."""
        return (self.name,) if self.path is None else read_path(self.path)

    @property
    def array(self) -> Steps | None:
        """The path of the exploded array that contains the field, or None outside exploded arrays."""
        return exploded_array(self.steps)

    @property
    def header(self) -> str:
        """The name of the header that contains the value."""
        return self.path if isinstance(self.path, str) else self.name

    @property
    def place(self) -> str:
        """The place of the value in the record for error messages, such as `header region`."""
        if self.origin == "value":
            return show_path(self.steps)
        if self.origin == "envelope":
            return f"the envelope's {show_path(self.member_path)}"
        return f"header {self.header}" if self.origin == "header" else f"the record's {self.origin}"


class EventTimeSpec(Model):
    """The time of an event, and how late or early events may be."""

    field: Name | None = Field(None, description="A field of type timestamp. Default: the Kafka record's timestamp.")
    max_disorder: Duration = Field(
        "5s", description="Events that are older than the newest event by more than this time can count as late."
    )
    idle_timeout: Duration = Field(
        "20m",
        description="Time without new events, for a partition that was read to its end. After this time, the watermark"
        " ignores the partition. If a sender buffers events for longer, the events may be late.",
    )
    max_future: Duration = Field(
        "1h",
        description="Maximum time from the wall clock to a later event time. Events with a later time become dead"
        " letters.",
    )
    max_advance: Duration = Field(
        "1d",
        description="Maximum jump of event time. After a larger jump, the watermark waits for other events to confirm"
        " the new time.",
    )


class SourceSpec(Model):
    """The source and the format of events."""

    kafka: KafkaSpec | None = Field(
        None,
        description="Kafka cluster of the source topic. Default: the platform's cluster. A topic on another cluster"
        " needs a name and managed: false. Results, anomalies and dead letters are written to the platform's cluster.",
    )
    topic: TopicSpec = Field(default_factory=lambda: TopicSpec(), description="The source topic.")
    topics: list[TopicName] | None = Field(
        None,
        min_length=1,
        max_length=MAX_TOPICS,
        description="Several existing source topics with the same kind of events, in place of topic.name. Set"
        " topic.managed: false.",
    )
    topic_pattern: TopicPattern | None = Field(
        None,
        description="A regular expression, in place of topics. The expression must match the whole name of a topic."
        " The pipeline also reads matching topics created later. Set topic.managed: false.",
    )
    format: Format | None = Field(
        None,
        description="Format of the records: a type (json, jsonSchema, csv, avro, protobuf) or an object. Members of the"
        " object: type, registry (url and secretRef, for avro and protobuf), envelope (none, cloudevents, debezium,"
        " connect), deletes (ignore, deadLetter, event), columns and delimiter (for csv).",
    )
    fields: list[FieldSpec] = Field(min_length=1, max_length=200, description="The event's fields.")
    strict: bool = Field(False, description="True: an event with a member that is not in fields becomes a dead letter.")
    key: Name | None = Field(None, description="Field that ingest uses as the key of the Kafka record.")
    event_time: EventTimeSpec = Field(default_factory=lambda: EventTimeSpec(), description="Event time settings.")
    dedupe: DedupeSpec | None = Field(
        None, description="Count events with the same id only once. Default: all events are counted."
    )
    webhooks: list[WebhookSpec] | None = Field(
        None, max_length=16, description="Services that post signed events to ingest. Default: none."
    )
    mqtt: MqttSpec | None = Field(None, description="An MQTT broker with messages that are events. Default: none.")
    connectors: list[ConnectorSpec] | None = Field(
        None,
        max_length=8,
        description="Source connectors of Kafka Connect, which write the topic's records.",
    )

    @property
    def array(self) -> Steps | None:
        """The path of the array whose elements become events, or None if each record is an event."""
        return next((field.array for field in self.fields if field.array is not None), None)

    @property
    def is_multi_topic(self) -> bool:
        """Whether the pipeline reads a list or a pattern of topics."""
        return self.topics is not None or self.topic_pattern is not None

    @property
    def record_format(self) -> FormatSpec:
        """The format of records."""
        return self.format or FormatSpec()
