"""The rules of `spec.source.connectors`.

No message shows the value of a config, because the value could be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tidemill_contract.resource.connectors.worker_files import worker_folder
from tidemill_contract.resource.faults import ABSENT, Fault
from tidemill_contract.resource.kinds.connectors import ConnectorSpec, split_list
from tidemill_contract.resource.kinds.formats import FormatSpec
from tidemill_contract.resource.parts import Parts

RESERVED_PREFIX = "tidemill"
"""The names of transforms and predicates that Tidemill adds begin with this prefix."""
_CONVERTER = "value.converter"
_SET_BY_MEMBERS = {
    "name": "remove this config; set the connector's name in spec.source.connectors[].name",
    "connector.class": "set spec.source.connectors[].class instead",
    "tasks.max": "set spec.source.connectors[].tasks instead",
}
_SINK_CONFIGS = ("topics", "topics.regex")
# Configs that connectors must not set. With these configs, a connector could write to topics of other pipelines, or to
# another Kafka cluster.
_FORBIDDEN_PREFIXES = (
    ("topic.creation.", "Tidemill creates the pipeline's topic", "set the topic's configs in spec.source.topic"),
    (
        "producer.override.bootstrap.servers",
        "records go to the pipeline's topic",
        "remove this config; Connect's workers know the brokers",
    ),
    ("producer.override.transactional.id", "Kafka Connect chooses the transactional id", "remove this config"),
    ("consumer.override.", "a source connector does not consume records", "remove this config"),
    ("admin.override.", "Tidemill creates the pipeline's topic", "remove this config"),
    ("offsets.storage.topic", "the Connect cluster chooses the topic for offsets", "remove this config"),
    (f"{RESERVED_PREFIX}.", "this prefix is reserved for Tidemill", "remove this config"),
    (f"transforms.{RESERVED_PREFIX}", "this name of a transform is reserved for Tidemill", "rename the transform"),
    (f"predicates.{RESERVED_PREFIX}", "this name of a predicate is reserved for Tidemill", "rename the predicate"),
)
_SECRET = re.compile(
    r"password|passwd|passphrase|secret|token|credential|jaas|(private|api|access|account)[._-]?key", re.IGNORECASE
)
_SECRET_IN_VALUE = re.compile(
    r"://[^/\s:@]*:[^/\s@]+@|[?&;\s](password|passwd|pwd|secret|token|sslpassword)=", re.IGNORECASE
)
_REFERENCE = re.compile(r"\$\{[^}]*:[^}]*\}")
"""The pattern of references that Kafka Connect replaces, such as `${file:path:key}`. `${topic}` does not match."""


def connector_faults(parts: Parts, _columns: object, _limits: object) -> Iterator[Fault]:
    """Yield a fault for each broken rule about connectors."""
    first_paths: dict[str, str] = {}
    for part in parts.connectors:
        if part.name is not None and part.name in first_paths:
            message = f"the connector is listed twice, first at {first_paths[part.name]}"
            yield Fault(f"{part.path}.name", part.name, message, "give each connector a different name")
        if part.name is not None:
            first_paths.setdefault(part.name, f"{part.path}.name")
        if part.model is None:
            continue
        for key in part.model.config:
            yield from _forbidden_faults(key, f"{part.path}.config.{key}")
        for key in part.model.secrets:
            yield from _forbidden_faults(key, f"{part.path}.secrets.{key}")
            if key in part.model.config:
                yield Fault(
                    f"{part.path}.config.{key}",
                    ABSENT,
                    "this config is listed in both config and secrets",
                    "remove one of the two entries",
                )
        yield from _value_faults(part.model, f"{part.path}.config")
        yield from _name_faults(part.model, f"{part.path}.config")
        if parts.format is not None:
            yield from _format_faults(part.model, parts.format, part.path)


def _forbidden_faults(key: str, path: str) -> Iterator[Fault]:
    if key in _SET_BY_MEMBERS:
        yield Fault(path, ABSENT, "another member of the spec sets this config", _SET_BY_MEMBERS[key])
    if key in _SINK_CONFIGS:
        yield Fault(
            path,
            ABSENT,
            "only sink connectors have this config, but a pipeline needs source connectors",
            "use a source connector",
        )
    for prefix, message, remedy in _FORBIDDEN_PREFIXES:
        if key.startswith(prefix):
            yield Fault(path, ABSENT, message, remedy)


def _value_faults(connector: ConnectorSpec, path: str) -> Iterator[Fault]:
    for key, value in connector.config.items():
        if _REFERENCE.search(value):
            message = "refers to a file or variable of Connect's workers"
            yield Fault(f"{path}.{key}", ABSENT, message, f"move the config to secrets: {{{key}: {{name: …, key: …}}}}")
        elif _SECRET.search(key):
            message = "looks like a secret, and every reader of the pipeline could see it"
            yield Fault(f"{path}.{key}", ABSENT, message, f"move the config to secrets: {{{key}: {{name: …, key: …}}}}")
        elif _SECRET_IN_VALUE.search(value):
            message = "contains a password, and every reader of the pipeline could see it"
            yield Fault(f"{path}.{key}", ABSENT, message, f"move the config to secrets: {{{key}: {{name: …, key: …}}}}")
        elif (folder := worker_folder(value)) is not None:
            message = f"is in {folder}, a folder with private files of Connect's workers"
            yield Fault(f"{path}.{key}", value, message, "use a file outside this folder")


def _name_faults(connector: ConnectorSpec, path: str) -> Iterator[Fault]:
    for key in ("transforms", "predicates"):
        for name in split_list(connector.config.get(key, "")):
            if name.startswith(RESERVED_PREFIX):
                yield Fault(f"{path}.{key}", name, "the name is reserved for Tidemill", "choose another name")


def _format_faults(connector: ConnectorSpec, record_format: FormatSpec, path: str) -> Iterator[Fault]:
    if record_format.type != "json" and _CONVERTER not in connector.config:
        message = f"records must be written as {record_format.type}"
        yield Fault(f"{path}.config.{_CONVERTER}", ABSENT, message, f"set a converter that writes {record_format.type}")
    if connector.is_debezium and record_format.envelope == "none" and not connector.transforms:
        message = "Debezium writes each change in an envelope"
        remedy = "set envelope: debezium, or unwrap the rows with the connector's transforms"
        yield Fault("spec.source.format.envelope", record_format.envelope, message, remedy)
