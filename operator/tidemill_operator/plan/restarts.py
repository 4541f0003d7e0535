"""Compute the part of a pipeline's config that processors read at their start."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tidemill_contract.runtime import PipelineConfig

# Settings whose change does not restart processors. New partitions restart processors, because a running consumer
# needs minutes to notice new partitions.
IGNORED_SETTINGS = (
    "suspend",
    "reclaimPolicy",
    "source.topic.managed",
    "source.topic.replicationFactor",
    "source.topic.retention",
    "source.topic.config",
    "source.topicPattern",
    "source.webhooks",
    "source.mqtt",
    "source.connectors",
    "aggregations.retention",
    "deadLetters.retention",
    "anomalyHistory.retention",
    "processor.replicas",
    "processor.scaling",
    "processor.resources",
    "ingest",
    "api",
    "auth",
)

# Processors do not read the settings of the Python stage.
_STAGE = "transform.python"


def processor_settings(config: PipelineConfig) -> str:
    """Return the settings that processors read. Equal settings give equal texts."""
    # Leave out unset settings, so that new optional settings of later Tidemill versions do not restart processors.
    settings = config.model_dump(mode="json", by_alias=True, exclude={"generation"}, exclude_none=True)
    for path in (*IGNORED_SETTINGS, _STAGE):
        _remove_path(settings["spec"], path.split("."))
    if config.spec.source.is_multi_topic:
        # Running processors find added topics and partitions in a table, and need no restart.
        settings["spec"]["source"]["topics"] = True
        _remove_path(settings["spec"], ["source", "topic", "partitions"])
    return json.dumps(settings, sort_keys=True)


def revision(config: PipelineConfig) -> str:
    """Return a hash of the settings that processors read. A changed hash replaces the processors."""
    text = f"{config.generation}\n{processor_settings(config)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stage_revision(config: PipelineConfig) -> str:
    """Return a hash of the settings that the Python stage reads at its start."""
    python, spec = config.spec.transform.python, config.spec
    settings = (
        python.model_dump(mode="json", exclude={"replicas", "scaling", "resources"}) if python is not None else {}
    )
    parts = [settings, config.events_topic, spec.source.topic.start_from, spec.processor.flush_interval]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _remove_path(value: Any, path: list[str]) -> None:
    for item in value if isinstance(value, list) else [value]:
        if len(path) > 1:
            _remove_path(item[path[0]], path[1:])
        else:
            item.pop(path[0], None)
