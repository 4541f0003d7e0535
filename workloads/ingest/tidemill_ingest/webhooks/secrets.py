"""Reads the secrets of webhooks. A file is read again after a second, so that secrets can be rotated."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from tidemill_contract.files import read_bytes
from tidemill_contract.resource.inputs.webhooks import WebhookSpec
from tidemill_contract.runtime import WorkloadSettings

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
MAX_SECRETS = 10
"""The maximum number of valid secrets. Further lines are ignored."""


class Secrets:
    """The secrets of all webhooks."""

    def __init__(self, settings: WorkloadSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._cache: dict[tuple[str, str], tuple[float, tuple[bytes, ...]]] = {}

    def for_webhook(self, pipeline: str, webhook: WebhookSpec) -> tuple[bytes, ...]:
        """Return the valid secrets of a webhook, which are the lines of its file."""
        now = self._clock()
        read_at, secrets = self._cache.get((pipeline, webhook.name), (-POLL_SECONDS, ()))
        if now - read_at < POLL_SECONDS:
            return secrets
        path = self._settings.secret_file(pipeline, webhook.secret_file)
        try:
            lines = (line.strip() for line in read_bytes(path).splitlines())
            secrets = tuple(line for line in lines if line)[:MAX_SECRETS]
        except FileNotFoundError:
            secrets = ()
        except OSError as error:
            log.warning("%s: %s; the earlier secrets stay in use", path, error.strerror)
        self._cache[pipeline, webhook.name] = now, secrets
        return secrets
