"""Divide a document into separately read parts. A fault in one part does not hide other faults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from tidemill_contract.resource.inputs.dedupe import DedupeSpec
from tidemill_contract.resource.inputs.mqtt import MqttSpec
from tidemill_contract.resource.inputs.webhooks import WebhookSpec
from tidemill_contract.resource.kinds.base import Model
from tidemill_contract.resource.kinds.connectors import ConnectorSpec
from tidemill_contract.resource.kinds.detectors import DETECTORS
from tidemill_contract.resource.kinds.formats import FormatSpec
from tidemill_contract.resource.kinds.kafka import KafkaSpec
from tidemill_contract.resource.kinds.metrics import METRICS
from tidemill_contract.resource.kinds.windows import WINDOWS
from tidemill_contract.resource.lookups.model import LookupSpec
from tidemill_contract.resource.source import EventTimeSpec, FieldSpec, TopicSpec
from tidemill_contract.resource.spec import (
    AggregationSpec,
    AnomalyHistorySpec,
    AnomalySpec,
    DeadLettersSpec,
    DeriveSpec,
    EventsSpec,
    IngestSpec,
    ProcessorSpec,
    PythonSpec,
)

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Part(Generic[M]):
    """An item of a list in the document. `name` is None if the name is invalid, and `model` if the item is invalid."""

    path: str
    name: str | None
    model: M | None


@dataclass(frozen=True)
class AggregationPart:
    """The members of an aggregation. `window` and `metrics` may be invalid, such as a tumbling window with a `hop`."""

    path: str
    name: str | None
    window: Model | None
    group_by: tuple[tuple[str, str], ...]
    metrics: tuple[Part[Any], ...]
    retention: str | None


@dataclass(frozen=True)
class AnomalyPart:
    """An anomaly rule. `model` and `detector` are None if the rule or the detector cannot be read."""

    path: str
    name: str | None
    model: AnomalySpec | None
    detector: Model | None


@dataclass(frozen=True)
class Parts:
    """The parts of a document that the rules check. The values of `group_by`, `key` and `filter` may be invalid."""

    namespace: str
    name: str | None
    topic: TopicSpec | None
    topics: tuple[str, ...] | None  # None if the document has no list of topics
    topic_pattern: str | None
    kafka: KafkaSpec | None
    has_other_cluster: bool  # true if the document has a `source.kafka`, even an invalid one
    format: FormatSpec | None
    fields: tuple[Part[FieldSpec], ...]
    key: str | None
    event_time: EventTimeSpec | None
    dedupe: DedupeSpec | None
    webhooks: tuple[Part[WebhookSpec], ...]
    mqtt: MqttSpec | None
    lookups: tuple[Part[LookupSpec], ...]
    connectors: tuple[Part[ConnectorSpec], ...]
    derives: tuple[Part[DeriveSpec], ...]
    filter: str | None
    python: PythonSpec | None
    aggregations: tuple[AggregationPart, ...]
    anomalies: tuple[AnomalyPart, ...]
    events: EventsSpec | None
    dead_letters: DeadLettersSpec | None
    anomaly_history: AnomalyHistorySpec | None
    processor: ProcessorSpec | None
    ingest: IngestSpec | None

    @property
    def is_multi_topic(self) -> bool:
        """Whether the document sets `topics` or `topicPattern`."""
        return self.topics is not None or self.topic_pattern is not None


def split_document(document: Mapping[str, Any]) -> Parts:
    """Divide a document into parts. The document may be invalid."""
    metadata, spec = _mapping(document.get("metadata")), _mapping(document.get("spec"))
    source, transform = _mapping(spec.get("source")), _mapping(spec.get("transform"))
    namespace = metadata.get("namespace", "default")
    return Parts(
        namespace=namespace if isinstance(namespace, str) else "default",
        name=_text(metadata.get("name")),
        topic=_read(TopicSpec, source.get("topic", {})),
        topics=None if source.get("topics") is None else tuple(map(str, _items(source["topics"]))),
        topic_pattern=_text(source.get("topicPattern")),
        kafka=_read(KafkaSpec, source.get("kafka")),
        has_other_cluster=source.get("kafka") is not None,
        format=_read(FormatSpec, {"type": text} if isinstance(text := source.get("format", {}), str) else text),
        fields=_parts(FieldSpec, source.get("fields"), "spec.source.fields"),
        key=_text(source.get("key")),
        event_time=_read(EventTimeSpec, source.get("eventTime", {})),
        dedupe=_read(DedupeSpec, source.get("dedupe")),
        webhooks=_parts(WebhookSpec, source.get("webhooks"), "spec.source.webhooks"),
        mqtt=_read(MqttSpec, source.get("mqtt")),
        lookups=_parts(LookupSpec, spec.get("lookups"), "spec.lookups"),
        connectors=_parts(ConnectorSpec, source.get("connectors"), "spec.source.connectors"),
        derives=_parts(DeriveSpec, transform.get("derive"), "spec.transform.derive"),
        filter=_text(transform.get("filter")),
        python=_read(PythonSpec, transform.get("python")),
        aggregations=tuple(
            _aggregation(raw, f"spec.aggregations[{i}]") for i, raw in enumerate(_items(spec.get("aggregations")))
        ),
        anomalies=tuple(_anomaly(raw, f"spec.anomalies[{i}]") for i, raw in enumerate(_items(spec.get("anomalies")))),
        events=_read(EventsSpec, spec.get("events", {})),
        dead_letters=_read(DeadLettersSpec, spec.get("deadLetters", {})),
        anomaly_history=_read(AnomalyHistorySpec, spec.get("anomalyHistory", {})),
        processor=_read(ProcessorSpec, spec.get("processor", {})),
        ingest=_read(IngestSpec, spec.get("ingest", {})),
    )


def _aggregation(raw: Any, path: str) -> AggregationPart:
    item = _mapping(raw)
    groups = enumerate(_items(item.get("groupBy")))
    return AggregationPart(
        path=path,
        name=_text(item.get("name")),
        window=_read(WINDOWS.flat_model, item.get("window")),
        group_by=tuple((f"{path}.groupBy[{i}]", name) for i, name in groups if isinstance(name, str)),
        metrics=_parts(METRICS.flat_model, item.get("metrics"), f"{path}.metrics"),
        retention=_text(item.get("retention", AggregationSpec.model_fields["retention"].default)),
    )


def _anomaly(raw: Any, path: str) -> AnomalyPart:
    item = _mapping(raw)
    detector = _read(DETECTORS.flat_model, item.get("detector", {}))
    model = _read(AnomalySpec, {name: member for name, member in item.items() if name != "detector"})
    readable = detector is not None and model is not None
    return AnomalyPart(path, _text(item.get("name")), model if readable else None, detector if readable else None)


def _parts(model: type[M], raw: Any, path: str) -> tuple[Part[M], ...]:
    return tuple(
        Part(f"{path}[{i}]", _text(_mapping(item).get("name")), _read(model, item))
        for i, item in enumerate(_items(raw))
    )


def _read(model: type[M], raw: Any) -> M | None:
    try:
        return model.model_validate(raw, by_alias=True, by_name=False)
    except (ValidationError, RecursionError):
        return None


def _mapping(raw: Any) -> dict[Any, Any]:
    return raw if isinstance(raw, dict) else {}


def _items(raw: Any) -> list[Any]:
    return raw[:1000] if isinstance(raw, list) else []


def _text(raw: Any) -> str | None:
    return raw if isinstance(raw, str) else None
