"""Why a local server cannot run; the message says what to do about it."""

from __future__ import annotations


class ServerError(RuntimeError):
    """A local server is missing, did not start or did not become ready."""
