"""Pure: the part of a pipeline's config that processors read, once, at their start.

Everything counts as read unless it is listed here, so a new field restarts processors by default.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tidemill_contract.runtime import PipelineConfig

# Settings of other parts, and settings for Kafka, Postgres or the runtime. A topic's partitions count as read, because
# a running consumer would find new ones only minutes later.
UNREAD = (
    "suspend",
    "reclaimPolicy",
    "source.topic.managed",
    "source.topic.replicationFactor",
    "source.topic.retention",
    "source.topic.config",
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


def read_by_processors(config: PipelineConfig) -> str:
    """Return that part of a config as stable text, without the generation."""
    # Unset members are left out, so that a member added by a later version does not change the text.
    told = config.model_dump(mode="json", by_alias=True, exclude={"generation"}, exclude_none=True)
    for path in UNREAD:
        _take(told["spec"], path.split("."))
    return json.dumps(told, sort_keys=True)


def revision(config: PipelineConfig) -> str:
    """Return a hash of what processors read and of their generation. If the hash changes, processes are replaced."""
    text = f"{config.generation}\n{read_by_processors(config)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _take(value: Any, path: list[str]) -> None:
    """Remove a member; if the path leads through a list, from each of its items."""
    for item in value if isinstance(value, list) else [value]:
        if len(path) > 1:
            _take(item[path[0]], path[1:])
        else:
            item.pop(path[0], None)
