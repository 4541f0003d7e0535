"""The control loop of `up`: accepts the pipelines of the files, and reconciles them regularly."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tidemill_operator.errors import LockNotHeldError, Reason
from tidemill_operator.laptop.pipeline_files import FilesContent
from tidemill_operator.laptop.store import Store, StoredPipeline
from tidemill_operator.plan.replay import REPLAYING
from tidemill_operator.status import PROGRESSING, new_version_messages

_log = logging.getLogger(__name__)
WAITING_SECONDS = 0.5
DRIFT_SECONDS = 30.0
# interval at which the progress of a replay is checked
REPLAY_SECONDS = 2.0
MAX_BACKOFF_SECONDS = 30.0
# time after which a failing pipeline no longer delays the ready file
FAILED_SECONDS = 10.0
_TRANSIENT_REASONS = (Reason.WAITING, Reason.BLOCKED, Reason.UNREACHABLE)

Apply = Callable[[StoredPipeline], Mapping[str, Any]]
Release = Callable[[StoredPipeline], None]


class Session:
    """The pipelines of one run of `up`, by `namespace/name`."""

    def __init__(self, store: Store, *, apply: Apply, release: Release, say: Callable[[str], None]) -> None:
        self._store = store
        self._apply = apply
        self._release = release
        self._say = say
        self._pipelines: dict[str, StoredPipeline] = {}
        self._removed: dict[str, StoredPipeline] = {}
        self._due: dict[str, float] = {}
        self._backoff: dict[str, float] = {}
        self._last_messages: dict[str, str] = {}
        self._failing: dict[str, tuple[float, str]] = {}
        # pipelines whose status is from this run, not from an earlier run
        self._reconciled: set[str] = set()

    @property
    def pipelines(self) -> Mapping[str, StoredPipeline]:
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
        expected = self._pipelines.keys() - self.failed.keys()
        return self._all_ready(expected) and (bool(expected) or not self._pipelines)

    def _all_ready(self, keys: Iterable[str]) -> bool:
        return not self._removed and all(map(self._is_ready, keys))

    def _is_ready(self, key: str) -> bool:
        return self._pipelines[key].ready and key in self._reconciled

    def update_pipelines(self, content: FilesContent) -> None:
        """Accept the files' content: start new and changed pipelines, and stop missing pipelines."""
        for fault in content.faults:
            self._say(f"error: {fault}")
        if content.faults and self._pipelines:
            self._say("the running pipelines keep their last valid version")
        for key, document in content.documents.items():
            previous = self._pipelines.get(key)
            stored = self._store.accept(document)
            self._removed.pop(key, None)
            self._pipelines[key] = stored
            if previous is None or previous.document != stored.document:
                self._due[key] = 0.0
                if previous is not None:
                    self._say(f"{key}: changed, generation {stored.document['metadata']['generation']}")
        for key in [key for key in self._pipelines if key not in content.documents]:
            self._say(f"{key}: no longer in the files, so the pipeline is stopped")
            self._removed[key] = self._pipelines.pop(key)
            self._reconciled.discard(key)
            self._due[key] = 0.0

    def request_passes(self) -> None:
        """Request a pass for every pipeline, except failing pipelines, which are retried later."""
        for key in self._pipelines:
            if key not in self._backoff:
                self._due[key] = 0.0

    def step(self) -> None:
        """Run the passes that are due: reconcile pipelines, and delete the objects of removed pipelines."""
        for key, stored in [*self._pipelines.items(), *self._removed.items()]:
            if time.monotonic() < self._due.get(key, 0.0):
                continue
            try:
                if key in self._removed:
                    self._remove_pipeline(key, stored)
                else:
                    self._reconcile(key, stored)
                self._backoff.pop(key, None)
            except LockNotHeldError as error:
                _log.info("%s: %s", key, error)
                self._due[key] = time.monotonic() + WAITING_SECONDS
            except Exception as error:  # the loop must continue, e.g. while a server is down
                _log.debug("reconciling %s failed", key, exc_info=True)
                text = " ".join(str(error).split()) or type(error).__name__
                self._record_failure(key, text)
                self._say_if_changed(key, f"failed: {text}; trying again")
                self._backoff[key] = min(self._backoff.get(key, WAITING_SECONDS) * 2, MAX_BACKOFF_SECONDS)
                self._due[key] = time.monotonic() + self._backoff[key]

    def _reconcile(self, key: str, stored: StoredPipeline) -> None:
        previous, stored = stored.status, self._store.update(stored, self._apply(stored))
        self._pipelines[key] = stored
        for text in new_version_messages(previous, stored.status, stored.name):
            self._say(f"{key}: {text}")
        self._reconciled.add(key)
        replaying = stored.status.get("replay", {}).get("phase") == REPLAYING
        settled = REPLAY_SECONDS if replaying else DRIFT_SECONDS
        self._due[key] = time.monotonic() + (settled if stored.ready else WAITING_SECONDS)
        self._record_failure(key, _failure(stored))
        self._say_if_changed(key, describe(stored))

    def _remove_pipeline(self, key: str, stored: StoredPipeline) -> None:
        self._release(stored)
        self._store.forget(stored)
        del self._removed[key]
        self._due.pop(key, None)
        self._say_if_changed(key, "released")

    def _record_failure(self, key: str, text: str) -> None:
        since, _ = self._failing.pop(key, (time.monotonic(), ""))
        if text:
            self._failing[key] = since, text

    def _say_if_changed(self, key: str, text: str) -> None:
        if self._last_messages.get(key) != text:
            self._last_messages[key] = text
            self._say(f"{key}: {text}")


def _failure(stored: StoredPipeline) -> str:
    for condition in stored.status.get("conditions", ()):
        if condition["type"] == "Ready" and condition["status"] != "True":
            return "" if condition.get("reason") in _TRANSIENT_REASONS else str(condition.get("message", ""))
    return ""


def describe(stored: StoredPipeline) -> str:
    """Describe in one line that a pipeline is ready, or why it is not."""
    if stored.ready:
        refusals = [c.get("message", "") for c in stored.status["conditions"] if c["type"] == "Stalled"]
        return "ready" + (f", but {refusals[0]}" if refusals else "")
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
