"""Checks API keys (`tm_<id>_<secret>`) and their scopes."""

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
_DUMMY_KEY = ApiKey(id="", sha256="0" * 64, scopes=())
_REMEDY = "send the header 'Authorization: Bearer tm_<id>_<secret>'"

_KEY_MISSING = f"an API key is needed: {_REMEDY}"
_KEY_UNKNOWN = f"this pipeline has no such API key, or there is no such pipeline: {_REMEDY}"


class Unauthorized(Exception):
    """The error for a request without a valid API key (401)."""


class Forbidden(Exception):
    """The error for a valid API key without the required scope (403)."""


@dataclass
class _KeyFile:
    stamp: tuple[int, int, int] | None
    checked_at: float
    keys: dict[str, ApiKey]


class Authenticator:
    """Checks API keys, in any thread or task."""

    def __init__(
        self, settings: WorkloadSettings, *, poll_seconds: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings, self._poll_seconds, self._clock = settings, poll_seconds, clock
        self._files: dict[str, _KeyFile] = {}
        self._lock = threading.Lock()

    def check(self, pipeline: PipelineConfig, authorization_header: str | None, scope: str) -> None:
        """Check that the API key in the header allows access to the pipeline.

        A key is required unless the pipeline has `auth.required: false`.

        Raises:
            Unauthorized: the API key is missing, malformed or unknown.
            Forbidden: the key lacks the scope.
        """
        if pipeline.spec.auth.required is False:
            return
        if not authorization_header:
            raise Unauthorized(_KEY_MISSING)
        key_id, secret = _parse(authorization_header)
        key = self._keys(pipeline.name).get(key_id, _DUMMY_KEY)
        # Compare a hash even for unknown ids. The response time then does not reveal the known ids.
        is_equal = hmac.compare_digest(hashlib.sha256(secret.encode()).hexdigest(), key.sha256.lower())
        if not is_equal or key is _DUMMY_KEY:
            raise Unauthorized(_KEY_UNKNOWN)
        if scope not in key.scopes:
            raise Forbidden(f"the API key {key_id} lacks the scope {scope}; it has {', '.join(key.scopes) or 'none'}")

    def refuse(self, authorization_header: str | None) -> NoReturn:
        """Reject a request for an unknown pipeline. The answer is the same as for a wrong API key.

        Raises:
            Unauthorized: always.
        """
        if not authorization_header:
            raise Unauthorized(_KEY_MISSING)
        _, secret = _parse(authorization_header)
        hmac.compare_digest(hashlib.sha256(secret.encode()).hexdigest(), _DUMMY_KEY.sha256)
        raise Unauthorized(_KEY_UNKNOWN)

    def _keys(self, pipeline: str) -> dict[str, ApiKey]:
        now = self._clock()
        with self._lock:
            file = self._files.get(pipeline)
            if file is None or now - file.checked_at >= self._poll_seconds:
                file = self._files[pipeline] = self._read(pipeline, now, file)
            return file.keys

    def _read(self, pipeline: str, now: float, previous: _KeyFile | None) -> _KeyFile:
        path = self._settings.secret_file(pipeline, "api-keys.json")
        try:
            status = path.stat()
        except FileNotFoundError:
            return _KeyFile(None, now, {})
        except OSError as error:
            log.warning("%s: %s", path, error.strerror)
            return _KeyFile(None, now, previous.keys if previous else {})
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if previous is not None and previous.stamp == stamp:
            return _KeyFile(stamp, now, previous.keys)
        try:
            keys = ApiKeys.model_validate_json(read_bytes(path)).keys
        except (OSError, ValueError) as error:
            # Log only the path and the kind of error. The message of pydantic would quote the API keys.
            log.warning("%s is not a file of API keys (%s); the earlier keys stay in use", path, type(error).__name__)
            return _KeyFile(stamp, now, previous.keys if previous else {})
        return _KeyFile(stamp, now, {key.id: key for key in keys})


def _parse(header: str) -> tuple[str, str]:
    scheme, _, key = header.strip().partition(" ")
    parts = key.strip().split("_", 2)
    well_formed = len(parts) == 3 and parts[0] == "tm" and parts[1] and parts[2]
    if scheme.lower() != "bearer" or not well_formed or len(key) > _MAX_KEY_LENGTH or not key.isascii():
        raise Unauthorized(f"the Authorization header is malformed: {_REMEDY}")
    return parts[1], parts[2]
