"""Builds the status code and body of /health, with the same rules for all workloads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tidemill_contract import tls

_MAX_DETAIL = 300
_CREDENTIALS = re.compile(r"(?<=://)\S*(?=@)|(?<=password=)(?:'[^']*'|\S+)", re.IGNORECASE)
_RESERVED = frozenset({"status", "component", "dependencies"})


@dataclass(frozen=True, slots=True)
class Dependency:
    """The state of a server that a component uses.

    Attributes:
        name: kafka, postgres, redis, …
        ok: whether the latest call succeeded.
        required: whether the component cannot work without the server.
        detail: the latest error, from which `health_report` removes credentials.
        breaker: the state of the circuit breaker: closed, half_open or open.
        latency_ms: the duration of the latest call, or None if it was not measured.
    """

    name: str
    ok: bool
    required: bool
    detail: str = ""
    breaker: str = "closed"
    latency_ms: float | None = None

    @property
    def up(self) -> bool:
        """Whether the latest call to the dependency succeeded and the circuit breaker is not open."""
        return self.ok and self.breaker != "open"


def health_report(
    component: str,
    dependencies: Sequence[Dependency],
    extra: Mapping[str, Any] | None = None,
    *,
    degraded: bool = False,
) -> tuple[int, dict[str, Any]]:
    """Return the status code and the body of /health.

    The status is `unhealthy` (503) if a required dependency is down. Otherwise, the status is `degraded` (200) if an
    optional dependency is down or `degraded` is true. In all other cases, the status is `healthy` (200).

    Raises:
        ValueError: `extra` contains a reserved key: `status`, `component` or `dependencies`.
    """
    if taken := _RESERVED & set(extra or ()):
        raise ValueError(f"extra holds {', '.join(sorted(taken))}, which /health writes itself: choose another name")
    down = [dependency for dependency in dependencies if not dependency.up]
    required_is_down = any(dependency.required for dependency in down)
    status = "unhealthy" if required_is_down else "degraded" if down or degraded else "healthy"
    body = {
        "status": status,
        "component": component,
        "dependencies": {d.name: _dependency_row(d) for d in dependencies},
        **(extra or {}),
    }
    return (503 if status == "unhealthy" else 200), body


def public_report(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the public part of a report: no error texts, latencies or members from `extra`."""
    rows = {
        name: {member: row[member] for member in ("status", "required", "breaker")}
        for name, row in body["dependencies"].items()
    }
    return {"status": body["status"], "component": body["component"], "dependencies": rows}


def _dependency_row(dependency: Dependency) -> dict[str, Any]:
    row: dict[str, Any] = {
        "status": "up" if dependency.up else "down",
        "required": dependency.required,
        "breaker": dependency.breaker,
    }
    detail = _CREDENTIALS.sub("***", " ".join(dependency.detail.split()))
    if not detail and not dependency.up:
        detail = "circuit breaker open" if dependency.breaker == "open" else "no answer"
    if detail:
        remedy = tls.certificate_remedy(dependency.name, detail)
        ending = f"; {remedy}" if remedy else ""
        limit = _MAX_DETAIL - len(ending)
        row["detail"] = (detail if len(detail) <= limit else detail[: limit - 1] + "…") + ending
    if dependency.latency_ms is not None:
        row["latency_ms"] = round(dependency.latency_ms, 1)
    return row
