"""The error of a local server that cannot run."""

from __future__ import annotations


class ServerError(RuntimeError):
    """A local server is missing, did not start or did not become ready. The message contains the remedy."""
