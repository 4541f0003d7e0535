"""Compute the configs of a pipeline's connectors, as Kafka Connect stores them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from tidemill_contract import names
from tidemill_contract.decimals import DECIMAL
from tidemill_contract.resource.connectors.rules import RESERVED_PREFIX
from tidemill_contract.resource.connectors.worker_files import worker_folder
from tidemill_contract.resource.kinds.connectors import ConnectorSpec, SecretKeyRef, split_list
from tidemill_contract.resource.source import SourceSpec
from tidemill_contract.runtime import PipelineConfig
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.live import Owner
from tidemill_operator.plan.model import Connector
from tidemill_operator.settings import Platform

OWNER = f"{RESERVED_PREFIX}.owner"
"""The config key for the owner of the connector. Connectors ignore unknown config keys."""
POSTGRES, FILES = (
    "io.debezium.connector.postgresql.PostgresConnector",
    "org.apache.kafka.connect.file.FileStreamSourceConnector",
)
_JSON = "org.apache.kafka.connect.json.JsonConverter"
_ROUTE, _LEAVE_OUT, _NO_CHANGE = f"{RESERVED_PREFIX}Topic", f"{RESERVED_PREFIX}LeaveOut", f"{RESERVED_PREFIX}NoChange"
_PREFIX, _HEARTBEATS = "topic.prefix", "topic.heartbeat.prefix"
_SLOT_MAX = 63


def desired_connectors(config: PipelineConfig, platform: Platform, owner: Owner) -> tuple[Connector, ...]:
    """Return the connectors of a pipeline. A suspended pipeline has paused connectors."""
    return tuple(_connector(spec, config, platform, owner) for spec in config.spec.source.connectors or ())


def _connector(spec: ConnectorSpec, config: PipelineConfig, platform: Platform, owner: Owner) -> Connector:
    name = names.connector(config.namespace, config.name, spec.name)
    secrets = {
        key: secret_placeholder(platform.connect_secrets, config.namespace, config.name, secret)
        for key, secret in spec.secrets.items()
    }
    topic = config.spec.source.topic.name or names.topic(config.namespace, config.name, "events")
    given = {**_defaults(spec, config.spec.source, name, topic), **spec.config, **secrets}
    fixed = {
        "name": name,
        "connector.class": spec.class_name,
        "tasks.max": str(spec.tasks),
        OWNER: owner_text(owner),
        **_transforms(spec, given, topic),
    }
    return Connector(
        name=name,
        spec_name=spec.name,
        config=dict(sorted({**given, **fixed}.items())),
        paused=spec.paused or config.spec.suspend,
        secrets=tuple(sorted({(secret.name, secret.key) for secret in spec.secrets.values()})),
    )


def owner_text(owner: Owner) -> str:
    """Return the text that records the owner in a connector's config."""
    return f"{owner.cluster}/{owner.namespace}/{owner.name}/{owner.uid}"


def secret_placeholder(template: str, namespace: str, pipeline: str, secret: SecretKeyRef) -> str:
    """Return the placeholder for the value of a Secret's key. Connect's workers fill in the value."""
    file = secret_file(pipeline, secret.name, secret.key)
    placeholders = {"{namespace}": namespace, "{name}": secret.name, "{key}": secret.key, "{file}": file}
    for placeholder, text in placeholders.items():
        template = template.replace(placeholder, text)
    return template


def secret_file(pipeline: str, name: str, key: str) -> str:
    """Return the file name of a Secret's key for the operator's Connect workers."""
    return f"{pipeline}.{hashlib.sha256(f'{name}/{key}'.encode()).hexdigest()[:32]}"


def check_secret(name: str, key: str, text: str) -> None:
    """Check that a secret value does not refer to files of Connect's workers.

    Raises:
        TidemillError: the secret value refers to a folder with files of Connect's workers.
    """
    folder = worker_folder(text)
    if folder is not None:
        message = f"key {key} of Secret {name} refers to {folder}, where Connect's workers have their own files"
        raise TidemillError(Reason.REFUSED, message, "name a file outside of this folder")


def _defaults(spec: ConnectorSpec, source: SourceSpec, name: str, topic: str) -> dict[str, str]:
    config: dict[str, str] = {}
    if source.record_format.type == "json":
        for part in ("key", "value"):
            if f"{part}.converter" not in spec.config:
                config |= {f"{part}.converter": _JSON, f"{part}.converter.schemas.enable": "false"}
    if spec.class_name == FILES:
        config["topic"] = topic
    if spec.is_debezium:
        has_decimals = any(field.type == DECIMAL for field in source.fields)
        config |= {
            _PREFIX: name,
            # By default, Debezium writes decimals as bytes, which cannot be interpreted in JSON without a schema.
            "decimal.handling.mode": "string" if has_decimals else "double",
            # Tombstones are useless in a topic that is not compacted.
            "tombstones.on.delete": "false",
        }
    if spec.class_name == POSTGRES:
        # Debezium's default replication slot is the same for all connectors, but each connector needs its own slot.
        slot = re.sub(r"[^a-z0-9_]", "_", f"{RESERVED_PREFIX}_{name}")[:_SLOT_MAX]
        config |= {"plugin.name": "pgoutput", "slot.name": slot, "publication.name": slot}
        if "table.include.list" in spec.config:
            config["publication.autocreate.mode"] = "filtered"
    return config


def _transforms(spec: ConnectorSpec, given: Mapping[str, str], topic: str) -> dict[str, str]:
    """Return the configs of the transforms in the spec and of the transforms that Tidemill adds.

    Tidemill's last transform sends all records to the pipeline's topic.
    """
    transforms, predicates = [*spec.transforms, _ROUTE], list(split_list(given.get("predicates", "")))
    config = {
        f"transforms.{_ROUTE}.type": "org.apache.kafka.connect.transforms.RegexRouter",
        f"transforms.{_ROUTE}.regex": ".*",
        f"transforms.{_ROUTE}.replacement": topic,
    }
    if spec.is_debezium:
        prefix = re.escape(given[_PREFIX])
        heartbeats = re.escape(given.get(_HEARTBEATS, "__debezium-heartbeat"))
        transforms.insert(0, _LEAVE_OUT)
        predicates.append(_NO_CHANGE)
        config |= {
            f"transforms.{_LEAVE_OUT}.type": "org.apache.kafka.connect.transforms.Filter",
            f"transforms.{_LEAVE_OUT}.predicate": _NO_CHANGE,
            f"predicates.{_NO_CHANGE}.type": "org.apache.kafka.connect.transforms.predicates.TopicNameMatches",
            f"predicates.{_NO_CHANGE}.pattern": rf"{heartbeats}\..*|{prefix}|{prefix}\.transaction",
        }
    if predicates:
        config["predicates"] = ",".join(predicates)
    return config | {"transforms": ",".join(transforms)}
