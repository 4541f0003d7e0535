"""Writes the observer's figures, such as the lag, into the status of resources."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from tidemill_operator.actuators.kubernetes.api import PIPELINE, Api, Conflict, NotFound
from tidemill_operator.cluster.event_recorder import EventRecorder
from tidemill_operator.errors import TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.observer import figures
from tidemill_operator.observer.figures import Observation

log = logging.getLogger(__name__)
FIELD_MANAGER = "tidemill-observer"
"""Field manager (an author of fields in Kubernetes) of the status fields that the observer writes."""


class FiguresWriter:
    """Writes figures, such as the lag, into the status of pipelines."""

    def __init__(self, api: Api, recorder: EventRecorder, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._api, self._recorder, self._clock = api, recorder, clock
        self._written_at: dict[Key, float] = {}
        self._keys_with_figures: set[Key] = set()

    def update(self, key: Key, observation: Observation) -> None:
        """Write the figures if they have changed.

        Raises:
            TidemillError: the cluster's API does not answer.
        """
        document = self._api.get(PIPELINE, key.namespace, key.name)
        if document is None or document["metadata"]["uid"] != key.uid or document["metadata"].get("deletionTimestamp"):
            self._written_at.pop(key, None)
            self._keys_with_figures.discard(key)
            return
        self._keys_with_figures.add(key)
        previous = figures.observer_fields(document.get("status") or {})
        fields = figures.status_fields(observation, previous, int(document["metadata"].get("generation", 1)))
        elapsed = self._clock() - self._written_at.get(key, -1e9)
        if not figures.is_write_due(previous, fields, elapsed):
            return
        self._write(document, fields)
        self._written_at[key] = self._clock()
        if figures.availability_changed(previous, fields):
            self._report_availability(document, previous, fields)

    def remove_all(self, *, seconds: float = 5.0) -> None:
        """Remove the figures from all statuses, because nothing updates them any more. Stop after `seconds`."""
        deadline = self._clock() + seconds
        try:
            for key in sorted(self._keys_with_figures, key=str):
                document = self._api.get(PIPELINE, key.namespace, key.name)
                if self._clock() > deadline:
                    break
                if (
                    document
                    and document["metadata"]["uid"] == key.uid
                    and figures.observer_fields(document.get("status") or {})
                ):
                    self._write(document, {})
        except TidemillError as error:
            log.warning("outdated figures remain in statuses: %s", error)

    def _write(self, document: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
        metadata = {name: document["metadata"][name] for name in ("name", "namespace", "uid")}
        body = {"apiVersion": PIPELINE.api_version, "kind": PIPELINE.kind, "metadata": metadata, "status": dict(fields)}
        try:
            self._api.apply(body, subresource="status", manager=FIELD_MANAGER)
        except (Conflict, NotFound):
            log.info("%s/%s was deleted meanwhile", metadata["namespace"], metadata["name"])

    def _report_availability(
        self, document: Mapping[str, Any], previous: Mapping[str, Any], fields: Mapping[str, Any]
    ) -> None:
        (condition,) = fields.get("conditions") or previous["conditions"]
        unavailable = "conditions" in fields
        text = "LAG and FRESHNESS are " + (f"not known: {condition['message']}" if unavailable else "known again")
        log.log(logging.WARNING if unavailable else logging.INFO, "%s: %s", document["metadata"]["name"], text)
        self._recorder.write_event(
            document,
            "Warning" if unavailable else "Normal",
            figures.UNAVAILABLE if unavailable else "FiguresAvailable",
            text,
            at=f"{condition['lastTransitionTime']} {unavailable}",
        )
