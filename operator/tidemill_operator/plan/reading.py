"""What of a pipeline's config its processors read, at their start and never again. Pure.

Everything counts as read but what is listed here, so a new field restarts processors until somebody knows better.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tidemill_contract.runtime import PipelineConfig

# Other parts' settings, and what Kafka, Postgres or the runtime is told in place of the processors. A topic's
# partitions are read: a consumer that runs would find new ones only minutes later.
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
    """That part of a config as stable text, the generation left out."""
    # A member that is not set says nothing, so that one which a later version knows makes no other text.
    told = config.model_dump(mode="json", by_alias=True, exclude={"generation"}, exclude_none=True)
    for path in UNREAD:
        _take(told["spec"], path.split("."))
    return json.dumps(told, sort_keys=True)


def revision(config: PipelineConfig) -> str:
    """A mark of what processors read and of the generation under which they write: another one needs new processes."""
    text = f"{config.generation}\n{read_by_processors(config)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _take(value: Any, path: list[str]) -> None:
    """Take a member out, of each item where there is a list on the way."""
    for item in value if isinstance(value, list) else [value]:
        if len(path) > 1:
            _take(item[path[0]], path[1:])
        else:
            item.pop(path[0], None)
