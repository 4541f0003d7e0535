"""Interpret the live state of a connector. Messages about the state contain no secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tidemill_contract.resource.faults import one_line
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.connect.connectors import OWNER
from tidemill_operator.plan.model import Connector

RUNNING, PAUSED, STOPPED, FAILED, UNASSIGNED = "RUNNING", "PAUSED", "STOPPED", "FAILED", "UNASSIGNED"
_LONGEST_TRACE, _LONGEST_TEXT = 300, 2_000
_MASK = "…"
_SECRETS = (
    (re.compile(r"(://[^/\s:@]*:)[^/\s@]+@"), rf"\g<1>{_MASK}@"),
    (
        re.compile(r"((?:password|passwd|pwd|secret|token|credentials?)\w*[\"']?\s*[=:]\s*)[^\s,;&)}]+", re.IGNORECASE),
        rf"\g<1>{_MASK}",
    ),
    (re.compile(r"(Invalid value )\S.*( for configuration)"), rf"\g<1>{_MASK}\g<2>"),
)


@dataclass(frozen=True)
class LiveTask:
    """A task of a live connector. `trace` is the Java stack trace of a failed task."""

    id: int
    state: str
    trace: str = field(default="", repr=False)


@dataclass(frozen=True)
class LiveConnector:
    """A connector as Kafka Connect reports it.

    Attributes:
        requested_state: requested state (`running`, `paused` or `stopped`), or empty.
        pending: why the last change of the connector is not applied yet, or empty.
    """

    name: str
    config: Mapping[str, str] = field(repr=False)
    state: str = ""
    tasks: tuple[LiveTask, ...] = ()
    trace: str = field(default="", repr=False)
    requested_state: str = ""
    pending: str = ""
    refusal: str = ""

    @property
    def failures(self) -> tuple[str, ...]:
        """Return a line for a failed connector, and a line for each failed task."""
        lines = [f"connector {self.name} failed: {last_cause(self.trace)}"] if self.state == FAILED else []
        lines += [
            f"task {task.id} of connector {self.name} failed: {last_cause(task.trace)}"
            for task in self.tasks
            if task.state == FAILED
        ]
        return tuple(lines)


def last_cause(trace: str) -> str:
    """Return the last cause in a Java stack trace, without secrets."""
    lines = [line.strip() for line in trace.splitlines() if line.strip()]
    causes = [line.removeprefix("Caused by:").strip() for line in lines if line.startswith("Caused by:")]
    cause = causes[-1] if causes else next((line for line in lines if not line.startswith("at ")), "no trace")
    return mask_secrets(cause)[:_LONGEST_TRACE]


def mask_secrets(text: str) -> str:
    """Return a text on one line, with masked passwords."""
    # Cut long texts, because the regular expressions can take quadratic time.
    text = one_line(" ".join(text[:_LONGEST_TEXT].split()))
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def ownership_error(live: LiveConnector, wanted: Connector) -> TidemillError | None:
    """Return the error if this pipeline does not own the connector."""
    owner = live.config.get(OWNER, "")
    if owner == wanted.config[OWNER]:
        return None
    whose = f"the pipeline {owner}" if owner else "nobody that Tidemill knows"
    message = f"connector {live.name} belongs to {whose}"
    remedy = (
        "delete it in Kafka Connect, change spec.source.connectors[].name, or set the annotation tidemill.dev/adopt"
    )
    return TidemillError(Reason.RESOURCE_CONFLICT, message, remedy)


def has_drifted(live: LiveConnector, wanted: Connector) -> bool:
    """Return whether the stored config differs from the desired config."""
    return dict(live.config) != dict(wanted.config)


def status_item(live: LiveConnector, wanted: Connector) -> dict[str, Any]:
    """Return a connector's status."""
    item: dict[str, Any] = {
        "name": wanted.spec_name,
        "state": live.state or UNASSIGNED,
        "tasks": [{"id": task.id, "state": task.state} for task in live.tasks],
    }
    failures = live.failures
    return item | ({"message": "; ".join(failures)[:1024]} if failures else {})


def wait_reason(live: LiveConnector, wanted: Connector) -> str:
    """Return what a connector waits for, or an empty text if it is in its desired state."""
    states: Sequence[str] = (live.state, *(task.state for task in live.tasks))
    if wanted.paused:
        waits = [state for state in states if state not in (PAUSED, STOPPED, FAILED)]
        return f"connector {live.name} is being paused" if waits else ""
    if live.state != RUNNING:
        return f"connector {live.name} is {live.state or UNASSIGNED}"
    if not live.tasks:
        return f"connector {live.name} has no task yet"
    idle = [f"task {task.id} is {task.state}" for task in live.tasks if task.state != RUNNING]
    return f"connector {live.name}: {', '.join(idle)}" if idle else ""
