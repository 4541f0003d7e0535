"""Plan a replay: a separate reader fills new versions of aggregations from the topic.

A replay and the live processors must use the same spec. A new generation of the spec therefore restarts a replay.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_contract.runtime import PipelineConfig
from tidemill_contract.times import read_start
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.live import LiveSchema
from tidemill_operator.plan.model import Replay
from tidemill_operator.plan.versions import next_version, versions_filled

REPLAY = "tidemill.dev/replay"
REPLAYING, DONE = "Replaying", "Done"
_MEMBERS = {"aggregations", "from", "rate", "at"}


def requested_replay(pipeline: AnalyticsPipeline) -> dict[str, Any] | None:
    """Return the requested replay of a resource, or None if no replay is requested.

    Raises:
        TidemillError: the request is invalid.
    """
    text = (pipeline.metadata.annotations or {}).get(REPLAY)
    return read_request(text, [aggregation.name for aggregation in pipeline.spec.aggregations]) if text else None


def read_request(text: str, aggregations: Sequence[str]) -> dict[str, Any]:
    """Parse a request, fill in its defaults, and raise TidemillError if it is invalid."""
    try:
        request = json.loads(text)
    except ValueError:
        request = None
    if not isinstance(request, dict) or set(request) - _MEMBERS:
        raise _request_error(
            f"not a replay request (got {text[:80]})",
            'write {"aggregations": ["NAME"], "from": "earliest", "rate": 5000}',
        )
    wanted = request.get("aggregations", list(aggregations))
    if not isinstance(wanted, list) or not wanted or not set(map(str, wanted)) <= set(aggregations):
        raise _request_error(
            f"aggregations {wanted} do not all exist", f"name some of {', '.join(aggregations)}, or leave it out"
        )
    rate = request.get("rate", 0)
    if not isinstance(rate, int) or isinstance(rate, bool) or rate < 0:
        raise _request_error(
            f"rate {rate} is not a number of events per second", "write a whole number, or leave it out"
        )
    start = request.get("from", "earliest")
    if start != "earliest" and not _is_time(start):
        raise _request_error(f"from {start} is not a start time", "write earliest, or a time like 2026-03-01T00:00:00Z")
    return {"aggregations": wanted, "from": start, "rate": rate}


def planned_replay(pipeline: AnalyticsPipeline, config: PipelineConfig, live: LiveSchema | None) -> Replay | None:
    """Return the requested replay, or None.

    The result is None without a valid request, without a schema, or after the replay.
    """
    try:
        request = requested_replay(pipeline)
    except TidemillError:
        return None
    if request is None or live is None or finished_replay(pipeline, live):
        return None
    reader = f"{name_prefix((pipeline.metadata.annotations or {})[REPLAY])}{config.generation}"
    live_replay = live.replays.get(reader)
    versions = versions_filled(reader, live) or {
        name: max(next_version(name, live), config.version(name) + 1) for name in request["aggregations"]
    }
    return Replay(
        reader, versions, request["from"], request["rate"], handed_over=live_replay.handed_over if live_replay else 0
    )


def finished_replay(pipeline: AnalyticsPipeline, live: LiveSchema | None) -> str:
    """Return the name of the requested replay if the replay is complete, else an empty text."""
    text = (pipeline.metadata.annotations or {}).get(REPLAY)
    if not text or live is None:
        return ""
    done = [reader for reader, live_replay in live.replays.items() if live_replay.switched]
    return next((reader for reader in done if reader.startswith(name_prefix(text))), "")


def name_prefix(text: str) -> str:
    """Return the name prefix that all replays of one request share."""
    return f"replay-{hashlib.sha256(text.encode()).hexdigest()[:8]}-"


def abandoned_replays(replay: str, live: LiveSchema | None) -> tuple[str, ...]:
    """Return the names of cancelled replays."""
    replays: Mapping[str, Any] = live.replays if live else {}
    return tuple(
        sorted(reader for reader, live_replay in replays.items() if reader != replay and not live_replay.switched)
    )


def _is_time(text: Any) -> bool:
    try:
        read_start(text)
    except (TypeError, ValueError):
        return False
    return True


def _request_error(what: str, remedy: str) -> TidemillError:
    return TidemillError(Reason.INVALID_SPEC, f"metadata.annotations[{REPLAY}]: {what}", remedy)
