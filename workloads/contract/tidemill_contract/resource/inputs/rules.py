"""The rules of `spec.source.webhooks`, `mqtt` and `dedupe`: combinations with other members of the spec."""

from __future__ import annotations

from collections.abc import Iterator

from tidemill_contract.resource.faults import ABSENT, Fault
from tidemill_contract.resource.inputs.dedupe import ID_TYPES
from tidemill_contract.resource.parts import Parts


def input_faults(parts: Parts, _columns: object, _limits: object) -> Iterator[Fault]:
    """Yield a fault for each broken rule about webhooks, MQTT and `dedupe`."""
    yield from _dedupe_faults(parts)
    if parts.mqtt is not None:
        yield from parts.mqtt.faults("spec.source.mqtt")
    first_paths: dict[str, str] = {}
    for part in parts.webhooks:
        if part.name is not None and part.name in first_paths:
            message = f"the webhook is listed twice, first at {first_paths[part.name]}"
            yield Fault(f"{part.path}.name", part.name, message, "give each webhook a different name")
        first_paths.setdefault(part.name or "", part.path)
        if part.model is not None:
            yield from part.model.faults(part.path)
    if parts.kafka is not None:
        writers = {"connectors": parts.connectors, "mqtt": parts.mqtt, "webhooks": parts.webhooks}
        for member, given in writers.items():
            if given:
                message = "the source topic is on another Kafka cluster, to which Tidemill does not write"
                yield Fault(
                    f"spec.source.{member}", ABSENT, message, f"remove spec.source.{member} or spec.source.kafka"
                )
    if not parts.webhooks:
        return
    if parts.ingest is not None and not parts.ingest.enabled:
        message = "webhooks need ingest, which is disabled"
        yield Fault("spec.ingest.enabled", False, message, "set enabled: true, or remove spec.source.webhooks")
    if parts.format is not None and parts.format.type != "json":
        message = "ingest writes the events of webhooks as JSON"
        yield Fault(
            "spec.source.format.type", parts.format.type, message, "set type: json, or remove spec.source.webhooks"
        )


def _dedupe_faults(parts: Parts) -> Iterator[Fault]:
    if parts.dedupe is None:
        return
    yield from parts.dedupe.faults("spec.source.dedupe")
    path, name = "spec.source.dedupe.field", parts.dedupe.field
    field = next((part.model for part in parts.fields if part.name == name), None)
    if field is None:
        return
    if field.type not in ID_TYPES:
        remedy = "use a field of type string or integer"
        if field.type in ("number", "decimal"):
            remedy = "declare type: integer if ids are whole numbers, or type: string if events have ids in quotes"
        yield Fault(path, name, f"is of type {field.type}, which cannot identify events", remedy)
    elif field.origin in ("partition", "offset"):
        message = f"copies of an event are separate records, with different {field.origin}s"
        yield Fault(path, name, message, "use a field that the sender sets")
    elif field.origin in ("key", "header") and parts.python is not None:
        message = f"is read from the record's {field.origin}, so all events of one record would have the same id"
        yield Fault(path, name, message, "let the function write a different id into a member of each event")
    elif field.default is not None:
        message = "has a default, which would be the same id for all events without an id"
        yield Fault(path, name, message, "remove the default; each event without an id is then counted")
