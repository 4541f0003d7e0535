"""List for `tidemill plan` what a pipeline reads, except topics that the pipeline manages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tidemill_contract.resource.lookups.model import LookupSpec
from tidemill_contract.resource.spec import PythonSpec
from tidemill_contract.runtime import PipelineConfig
from tidemill_operator.plan.model import Plan

Kind = Literal["topic", "topics", "mqtt", "webhook", "connector", "python", "lookup"]


@dataclass(frozen=True)
class ExternalInput:
    """A source, a lookup or the Python function of a pipeline. The `kind` of a topic pattern is `topics`."""

    kind: Kind
    name: str
    place: str = ""
    secret: str = ""

    def __str__(self) -> str:
        parts = [f"{self.kind} {self.name}", self.place, f"Secret {self.secret}" if self.secret else ""]
        return ", ".join(filter(None, parts))


def external_inputs(plan: Plan) -> list[ExternalInput]:
    """Return what a pipeline reads: sources, then the Python function, then lookups."""
    config = PipelineConfig.from_json(plan.config)
    inputs = [*_inputs(config)]
    if (python := config.spec.transform.python) is not None:
        inputs.append(_python(python))
    return [*inputs, *map(_lookup, config.spec.lookups or ())]


def _inputs(config: PipelineConfig) -> Iterator[ExternalInput]:
    source = config.spec.source
    if source.kafka is not None or not source.topic.managed:
        place = f"Kafka {','.join(source.kafka.servers)}" if source.kafka is not None else "the platform's Kafka"
        secret = source.kafka.secret if source.kafka is not None else ""
        if source.topic_pattern is not None:
            yield ExternalInput("topics", source.topic_pattern, place, secret)
        yield from (ExternalInput("topic", topic, place, secret) for topic in config.source_topics)
    if source.mqtt is not None:
        secret = source.mqtt.secret_ref.name if source.mqtt.secret_ref is not None else ""
        yield ExternalInput("mqtt", source.mqtt.broker, f"topics {' '.join(source.mqtt.topics)}", secret)
    for webhook in source.webhooks or ():
        path = f"POST /v1/pipelines/{config.name}/webhooks/{webhook.name}"
        yield ExternalInput("webhook", webhook.name, path, f"{webhook.secret_ref.name}, key {webhook.secret_ref.key}")
    for connector in source.connectors or ():
        secrets = sorted({reference.name for reference in connector.secrets.values()})
        yield ExternalInput("connector", connector.name, connector.class_name, ", ".join(secrets))


def _python(python: PythonSpec) -> ExternalInput:
    where = f"ConfigMap {python.config_map}" if python.config_map else f"image {python.image}"
    return ExternalInput(
        "python", python.function, f"file {python.file} of {where}, at most {python.timeout} for an event"
    )


def _lookup(lookup: LookupSpec) -> ExternalInput:
    source = lookup.source
    secret = source.secret_ref.name if source.secret_ref is not None else ""
    match source.kind:
        case "configMap":
            place = f"file {source.file} of ConfigMap {source.config_map}"
        case "topic":
            place = f"topic {source.topic}"
        case "table":
            place = f"table {source.table}"
        case _:
            place = f"query {' '.join((source.query or '').split())}"
    return ExternalInput("lookup", lookup.name, f"{place}, by {lookup.on}", secret)
