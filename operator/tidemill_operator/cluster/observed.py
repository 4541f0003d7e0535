"""Writes the observer's figures, such as the lag, into the status of resources."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from tidemill_operator.actuators.kubernetes.api import PIPELINE, Api, Conflict, NotFound
from tidemill_operator.cluster.events import Recorder
from tidemill_operator.errors import TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.observer import figures
from tidemill_operator.observer.figures import Observation

log = logging.getLogger(__name__)
OBSERVER = "tidemill-observer"
"""Field manager (an author of fields in Kubernetes) of the status fields that the observer writes."""


class ObservedStatus:
    """Writes figures, such as the lag, into the status of pipelines."""

    def __init__(self, api: Api, recorder: Recorder, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._api, self._recorder, self._clock = api, recorder, clock
        self._written: dict[Key, float] = {}
        self._shown: set[Key] = set()

    def show(self, key: Key, seen: Observation) -> None:
        """Write the figures if they have changed.

        Raises:
            TidemillError: the cluster's API does not answer.
        """
        document = self._api.get(PIPELINE, key.namespace, key.name)
        if document is None or document["metadata"]["uid"] != key.uid or document["metadata"].get("deletionTimestamp"):
            self._written.pop(key, None)
            self._shown.discard(key)
            return
        self._shown.add(key)
        shown = figures.shown_by(document.get("status") or {})
        fields = figures.told(seen, shown, int(document["metadata"].get("generation", 1)))
        since = self._clock() - self._written.get(key, -1e9)
        if not figures.is_news(shown, fields, since):
            return
        self._write(document, fields)
        self._written[key] = self._clock()
        if figures.changed(shown, fields):
            self._tell(document, shown, fields)

    def blank(self, *, seconds: float = 5.0) -> None:
        """Remove the figures from all statuses, because nothing updates them any more. Stop after `seconds`."""
        deadline = self._clock() + seconds
        try:
            for key in sorted(self._shown, key=str):
                document = self._api.get(PIPELINE, key.namespace, key.name)
                if self._clock() > deadline:
                    break
                if (
                    document
                    and document["metadata"]["uid"] == key.uid
                    and figures.shown_by(document.get("status") or {})
                ):
                    self._write(document, {})
        except TidemillError as error:
            log.warning("outdated figures remain in statuses: %s", error)

    def _write(self, document: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
        metadata = {name: document["metadata"][name] for name in ("name", "namespace", "uid")}
        body = {"apiVersion": PIPELINE.api_version, "kind": PIPELINE.kind, "metadata": metadata, "status": dict(fields)}
        try:
            self._api.apply(body, subresource="status", manager=OBSERVER)
        except (Conflict, NotFound):
            log.info("%s/%s was deleted meanwhile", metadata["namespace"], metadata["name"])

    def _tell(self, document: Mapping[str, Any], shown: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
        (condition,) = fields.get("conditions") or shown["conditions"]
        away = "conditions" in fields
        text = "LAG and FRESHNESS are " + (f"not known: {condition['message']}" if away else "known again")
        log.log(logging.WARNING if away else logging.INFO, "%s: %s", document["metadata"]["name"], text)
        self._recorder.tell(
            document,
            "Warning" if away else "Normal",
            figures.UNAVAILABLE if away else "FiguresAvailable",
            text,
            at=f"{condition['lastTransitionTime']} {away}",
        )
