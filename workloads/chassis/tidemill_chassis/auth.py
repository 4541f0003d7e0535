"""Who may call: scoped API keys, `tm_<id>_<secret>`, checked against the pipeline's key file.

Keys can be rotated while workloads run: a changed file is read again within a second.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from tidemill_contract.files import read_bytes
from tidemill_contract.runtime import ApiKey, ApiKeys, PipelineConfig, WorkloadSettings

log = logging.getLogger(__name__)

EVENTS_APPEND, QUERY_READ = "events:append", "query:read"
_MAX_KEY_LENGTH = 512
_NOBODY = ApiKey(id="", sha256="0" * 64, scopes=())
_HOW = "send the header 'Authorization: Bearer tm_<id>_<secret>'"

_NEEDED = f"an API key is needed: {_HOW}"
_UNKNOWN = f"the API key is not one of this pipeline's, or there is no such pipeline: {_HOW}"


class Unauthorized(Exception):
    """No key, or not one of the pipeline's (401); the message says what to send, never what was wrong with a key."""


class Forbidden(Exception):
    """The key is good, but not for this (403)."""


@dataclass
class _Known:
    stamp: tuple[int, int, int] | None
    looked_at: float
    keys: dict[str, ApiKey]


class Authenticator:
    """Checks API keys; safe to share between threads and tasks.

    Args:
        settings: where the key files are.
        poll_seconds: how often at most a file is looked at.
        clock: seconds that only grow.
    """

    def __init__(
        self, settings: WorkloadSettings, *, poll_seconds: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings, self._poll, self._clock = settings, poll_seconds, clock
        self._known: dict[str, _Known] = {}
        self._lock = threading.Lock()

    def check(self, pipeline: PipelineConfig, authorization_header: str | None, scope: str) -> None:
        """Let the bearer of a key pass.

        Open to everybody if the pipeline's `auth.required` is false. Unset counts as true: nothing is open by accident.

        Args:
            pipeline: what is asked for.
            authorization_header: the value of the Authorization header, `Bearer tm_<id>_<secret>`.
            scope: `events:append` or `query:read`.

        Raises:
            Unauthorized: no key, a malformed or an unknown one.
            Forbidden: the key lacks the scope.
        """
        if pipeline.spec.auth.required is False:
            return
        if not authorization_header:
            raise Unauthorized(_NEEDED)
        key_id, secret = _parse(authorization_header)
        key = self._keys(pipeline.name).get(key_id, _NOBODY)
        # Unknown ids are compared as well: the time taken does not tell which ids exist.
        same = hmac.compare_digest(hashlib.sha256(secret.encode()).hexdigest(), key.sha256.lower())
        if not same or key is _NOBODY:
            raise Unauthorized(_UNKNOWN)
        if scope not in key.scopes:
            raise Forbidden(f"the API key {key_id} lacks the scope {scope}; it has {', '.join(key.scopes) or 'none'}")

    def refuse(self, authorization_header: str | None) -> NoReturn:
        """What is said of a pipeline that does not exist, as of one that wants another key: nobody learns names.

        Raises:
            Unauthorized: always.
        """
        if not authorization_header:
            raise Unauthorized(_NEEDED)
        _, secret = _parse(authorization_header)
        hmac.compare_digest(hashlib.sha256(secret.encode()).hexdigest(), _NOBODY.sha256)
        raise Unauthorized(_UNKNOWN)

    def _keys(self, pipeline: str) -> dict[str, ApiKey]:
        now = self._clock()
        with self._lock:
            known = self._known.get(pipeline)
            if known is None or now - known.looked_at >= self._poll:
                known = self._known[pipeline] = self._look(pipeline, now, known)
            return known.keys

    def _look(self, pipeline: str, now: float, known: _Known | None) -> _Known:
        path = self._settings.secret_file(pipeline, "api-keys.json")
        try:
            status = path.stat()
        except FileNotFoundError:
            return _Known(None, now, {})
        except OSError as error:
            log.warning("%s: %s", path, error.strerror)
            return _Known(None, now, known.keys if known else {})
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if known is not None and known.stamp == stamp:
            return _Known(stamp, now, known.keys)
        try:
            keys = ApiKeys.model_validate_json(read_bytes(path)).keys
        except (OSError, ValueError) as error:
            # pydantic's message would show the file's text: say only where.
            log.warning(
                "%s is not a file of API keys (%s); the keys read before stay in use", path, type(error).__name__
            )
            return _Known(stamp, now, known.keys if known else {})
        return _Known(stamp, now, {key.id: key for key in keys})


def _parse(header: str) -> tuple[str, str]:
    scheme, _, key = header.strip().partition(" ")
    parts = key.strip().split("_", 2)
    well_formed = len(parts) == 3 and parts[0] == "tm" and parts[1] and parts[2]
    if scheme.lower() != "bearer" or not well_formed or len(key) > _MAX_KEY_LENGTH or not key.isascii():
        raise Unauthorized(f"the Authorization header is not of the form that is taken: {_HOW}")
    return parts[1], parts[2]
