"""The control loop of `up`: accepts the pipelines of the files, and reconciles them regularly."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tidemill_operator.errors import NotOurTurn, Reason
from tidemill_operator.laptop.sources import Reading
from tidemill_operator.laptop.store import Store, Stored
from tidemill_operator.plan.replay import REPLAYING
from tidemill_operator.status import PROGRESSING, new_versions

_log = logging.getLogger(__name__)
WAITING_SECONDS = 0.5
DRIFT_SECONDS = 30.0
# interval at which the progress of a replay is checked
REPLAY_SECONDS = 2.0
MAX_BACKOFF_SECONDS = 30.0
# time after which a failing pipeline no longer delays the ready file
FAILED_SECONDS = 10.0
_COMES_BY_ITSELF = (Reason.WAITING, Reason.BLOCKED, Reason.UNREACHABLE)

Apply = Callable[[Stored], Mapping[str, Any]]
Release = Callable[[Stored], None]


class Session:
    """The pipelines of one run of `up`, by `namespace/name`."""

    def __init__(self, store: Store, *, apply: Apply, release: Release, say: Callable[[str], None]) -> None:
        self._store = store
        self._apply = apply
        self._release = release
        self._say = say
        self._pipelines: dict[str, Stored] = {}
        self._leaving: dict[str, Stored] = {}
        self._due: dict[str, float] = {}
        self._backoff: dict[str, float] = {}
        self._told: dict[str, str] = {}
        self._failing: dict[str, tuple[float, str]] = {}
        # pipelines whose status is from this run, not from an earlier run
        self._looked_at: set[str] = set()

    @property
    def pipelines(self) -> Mapping[str, Stored]:
        """The pipelines that should run."""
        return self._pipelines

    @property
    def ready(self) -> bool:
        """Whether all pipelines are ready, and the objects of removed pipelines are deleted."""
        return self._all_ready(self._pipelines)

    @property
    def failed(self) -> dict[str, str]:
        """The error of each pipeline that has been failing for at least `FAILED_SECONDS`."""
        before = time.monotonic() - FAILED_SECONDS
        return {
            key: text
            for key, (since, text) in self._failing.items()
            if since <= before and key in self._pipelines and not self._is_ready(key)
        }

    @property
    def settled(self) -> bool:
        """Whether every pipeline is ready or has failed. If all pipelines have failed, `settled` is False."""
        waited_for = self._pipelines.keys() - self.failed.keys()
        return self._all_ready(waited_for) and (bool(waited_for) or not self._pipelines)

    def _all_ready(self, keys: Iterable[str]) -> bool:
        return not self._leaving and all(map(self._is_ready, keys))

    def _is_ready(self, key: str) -> bool:
        return self._pipelines[key].ready and key in self._looked_at

    def take(self, reading: Reading) -> None:
        """Accept the files' content: start new and changed pipelines, and stop missing pipelines."""
        for fault in reading.faults:
            self._say(f"error: {fault}")
        if reading.faults and self._pipelines:
            self._say("the running pipelines keep their last valid version")
        for key, document in reading.documents.items():
            previous = self._pipelines.get(key)
            stored = self._store.accept(document)
            self._leaving.pop(key, None)
            self._pipelines[key] = stored
            if previous is None or previous.document != stored.document:
                self._due[key] = 0.0
                if previous is not None:
                    self._say(f"{key}: changed, generation {stored.document['metadata']['generation']}")
        for key in [key for key in self._pipelines if key not in reading.documents]:
            self._say(f"{key}: no longer in the files, so the pipeline is stopped")
            self._leaving[key] = self._pipelines.pop(key)
            self._looked_at.discard(key)
            self._due[key] = 0.0

    def nudge(self) -> None:
        """Request a pass for every pipeline, except failing pipelines, which are retried later."""
        for key in self._pipelines:
            if key not in self._backoff:
                self._due[key] = 0.0

    def step(self) -> None:
        """Run the passes that are due: reconcile pipelines, and delete the objects of removed pipelines."""
        for key, stored in [*self._pipelines.items(), *self._leaving.items()]:
            if time.monotonic() < self._due.get(key, 0.0):
                continue
            try:
                if key in self._leaving:
                    self._let_go(key, stored)
                else:
                    self._reconcile(key, stored)
                self._backoff.pop(key, None)
            except NotOurTurn as error:
                _log.info("%s: %s", key, error)
                self._due[key] = time.monotonic() + WAITING_SECONDS
            except Exception as error:  # the loop must continue, e.g. while a server is down
                _log.debug("reconciling %s failed", key, exc_info=True)
                text = " ".join(str(error).split()) or type(error).__name__
                self._note_failure(key, text)
                self._tell(key, f"failed: {text}; trying again")
                self._backoff[key] = min(self._backoff.get(key, WAITING_SECONDS) * 2, MAX_BACKOFF_SECONDS)
                self._due[key] = time.monotonic() + self._backoff[key]

    def _reconcile(self, key: str, stored: Stored) -> None:
        before, stored = stored.status, self._store.update(stored, self._apply(stored))
        self._pipelines[key] = stored
        for text in new_versions(before, stored.status, stored.name):
            self._say(f"{key}: {text}")
        self._looked_at.add(key)
        replaying = stored.status.get("replay", {}).get("phase") == REPLAYING
        settled = REPLAY_SECONDS if replaying else DRIFT_SECONDS
        self._due[key] = time.monotonic() + (settled if stored.ready else WAITING_SECONDS)
        self._note_failure(key, _failure(stored))
        self._tell(key, describe(stored))

    def _let_go(self, key: str, stored: Stored) -> None:
        self._release(stored)
        self._store.forget(stored)
        del self._leaving[key]
        self._due.pop(key, None)
        self._tell(key, "released")

    def _note_failure(self, key: str, text: str) -> None:
        since, _ = self._failing.pop(key, (time.monotonic(), ""))
        if text:
            self._failing[key] = since, text

    def _tell(self, key: str, text: str) -> None:
        if self._told.get(key) != text:
            self._told[key] = text
            self._say(f"{key}: {text}")


def _failure(stored: Stored) -> str:
    for condition in stored.status.get("conditions", ()):
        if condition["type"] == "Ready" and condition["status"] != "True":
            return "" if condition.get("reason") in _COMES_BY_ITSELF else str(condition.get("message", ""))
    return ""


def describe(stored: Stored) -> str:
    """Describe in one line that a pipeline is ready, or why it is not."""
    if stored.ready:
        refused = [c.get("message", "") for c in stored.status["conditions"] if c["type"] == "Stalled"]
        return "ready" + (f", but {refused[0]}" if refused else "")
    conditions = {condition["type"]: condition for condition in stored.status.get("conditions", ())}
    reasons = [
        f"{kind}: {condition.get('message') or condition.get('reason', '')}"
        for kind, condition in conditions.items()
        if condition["status"] != "True" and kind not in ("Ready", PROGRESSING)
    ]
    if not reasons and conditions:
        progressing = conditions["Ready"]["status"] == "True"
        text = str(conditions.get(PROGRESSING if progressing else "Ready", {}).get("message", ""))
        reasons = [text] if text else []
    return "not ready yet" + (f" ({'; '.join(reasons)})" if reasons else "")
