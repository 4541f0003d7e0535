"""The error of a local server that cannot run."""

from __future__ import annotations


class ServerError(RuntimeError):
    """The error of a local server that is missing, did not start, or did not become ready."""
