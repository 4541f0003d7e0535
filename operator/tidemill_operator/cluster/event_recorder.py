"""Writes Kubernetes Events for changed conditions."""

from __future__ import annotations

import datetime as dt
import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tidemill_operator.actuators.kubernetes.api import Api, Conflict, Terminating
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.status import CONDITIONS, PROGRESSING, new_version_messages

log = logging.getLogger(__name__)
_COMPONENT = "tidemill-operator"
_MAX_MESSAGE = 1024
# reasons of normal progress, which cause no warning
_NORMAL_REASONS = frozenset(
    {Reason.APPLIED, Reason.WAITING, Reason.BLOCKED, Reason.SUSPENDED, Reason.NOT_NEEDED, "Paused"}
)
# These conditions often change together. Of the changed conditions, only the first in this order gets an Event.
_RELATED_CONDITIONS = ("Ready", "Stalled", PROGRESSING, *CONDITIONS.values())
_ABNORMAL = frozenset({
    "Stalled",
    "Suspended",
    "ReconciliationPaused",
    "EventsLost",
    "QuotaUsedUp",
    "WindowsFailing",
    "FiguresUnavailable",
})  # fmt: skip

Document = Mapping[str, Any]


class EventRecorder:
    """Writes Events of resources."""

    def __init__(self, api: Api, instance: str) -> None:
        self._api, self._instance = api, instance

    def record_changes(self, document: Document, previous: Document | None, status: Document) -> None:
        """Write Events for the differences between two statuses."""
        for condition in conditions_to_report(previous, status):
            reason = condition["reason"]
            kind = "Normal" if reason in _NORMAL_REASONS else "Warning"
            text = f"{condition['type']} is {condition['status']}"
            message = f"{text}: {condition['message']}" if condition.get("message") else text
            _log_for(document, message)
            self.write_event(document, kind, reason, message, at=condition.get("lastTransitionTime", ""))
        for text in new_version_messages(previous, status, document["metadata"]["name"]):
            _log_for(document, text)
            self.write_event(document, "Normal", "NewVersion", text)

    def record_repairs(self, document: Document, repairs: Iterable[str], *, at: str) -> None:
        """Write an Event for each repair of an object that another user changed or deleted."""
        for text in repairs:
            _log_for(document, text)
            self.write_event(document, "Normal", "Repaired", text, at=at)

    def write_event(self, document: Document, kind: str, reason: str, message: str, *, at: str = "") -> None:
        """Write a Kubernetes Event, unless an Event with the same reason, message and time `at` exists."""
        metadata = document["metadata"]
        now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        digest = hashlib.sha256("\0".join((metadata["uid"], reason, message, at)).encode()).hexdigest()[:16]
        try:
            self._api.create({
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": f"{metadata['name']}.{digest}", "namespace": metadata["namespace"]},
                "involvedObject": {
                    "apiVersion": document["apiVersion"],
                    "kind": document["kind"],
                    "name": metadata["name"],
                    "namespace": metadata["namespace"],
                    "uid": metadata["uid"],
                },
                "type": kind,
                "reason": reason,
                "message": message[:_MAX_MESSAGE],
                "source": {"component": _COMPONENT},
                "reportingComponent": _COMPONENT,
                "reportingInstance": self._instance,
                "firstTimestamp": now,
                "lastTimestamp": now,
                "count": 1,
            })  # fmt: skip
        except (Conflict, Terminating):
            pass  # the Event was already written, or the namespace is gone
        except TidemillError as error:
            log.warning("event of %s/%s: %s", metadata["namespace"], metadata["name"], error)


def _log_for(document: Document, text: str) -> None:
    log.info("%s/%s: %s", document["metadata"]["namespace"], document["metadata"]["name"], text)


def conditions_to_report(previous: Document | None, status: Document) -> Iterator[dict[str, Any]]:
    """Yield the conditions to report. If several related conditions change together, only one condition is reported."""
    conditions = list(_changed_conditions(previous, status))
    related = [condition["type"] for condition in conditions if condition["type"] in _RELATED_CONDITIONS]
    first = min(related, key=_RELATED_CONDITIONS.index, default=None)
    for condition in conditions:
        if condition["type"] not in related or condition["type"] == first:
            yield condition


def _changed_conditions(previous: Document | None, status: Document) -> Iterator[dict[str, Any]]:
    """Yield the conditions with a changed status. A removed condition counts as False."""
    before = {condition["type"]: condition for condition in (previous or {}).get("conditions", ())}
    now = {condition["type"]: condition for condition in status.get("conditions", ())}
    for kind, condition in now.items():
        if kind == "Reconciling":
            continue  # the same as Progressing
        earlier = before.get(kind)
        # a new resource gets no Events about normal progress
        if earlier is None and condition["status"] != "True" and condition["reason"] in _NORMAL_REASONS:
            continue
        if earlier is None or earlier["status"] != condition["status"] or _is_worse(earlier, condition):
            yield condition
    for kind in sorted((before.keys() - now.keys()) & _ABNORMAL):
        yield {"type": kind, "status": "False", "reason": Reason.APPLIED, "lastTransitionTime": _latest(status)}


def _is_worse(earlier: Document, condition: Document) -> bool:
    """Return whether a condition has become worse."""
    if condition["type"] == "EventsLost":
        return bool(condition["message"] != earlier["message"])
    return (
        condition["status"] == "False"
        and earlier["reason"] in _NORMAL_REASONS
        and condition["reason"] not in _NORMAL_REASONS
    )


def _latest(status: Document) -> str:
    return max((str(condition.get("lastTransitionTime", "")) for condition in status.get("conditions", ())), default="")
