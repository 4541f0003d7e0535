"""Decides whether an error is temporary, or is caused by data or code."""

from __future__ import annotations

import psycopg
import redis

from tidemill_chassis.resilience.config import BreakerOpen
from tidemill_processor.publish.producer import PublishFailed

_SERVER_ERROR_CLASSES = frozenset({"08", "25", "28", "3D", "40", "53", "55", "57", "58", "F0"})
"""The SQLSTATE classes of server errors, such as a lost connection or a full disk."""
_MAX_CHARS = 500


def is_permanent(error: BaseException) -> bool:
    """Return whether the cause is data, a table or code. No retry can fix these causes."""
    if isinstance(error, PublishFailed | redis.RedisError | BreakerOpen | OSError):
        return False
    if isinstance(error, psycopg.Error):
        if error.sqlstate:
            return error.sqlstate[:2] not in _SERVER_ERROR_CLASSES
        return not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return isinstance(error, Exception)


def error_text(error: BaseException) -> str:
    """Return an error as one line of text."""
    text = " ".join(str(error).split()) or type(error).__name__
    # Add the name of the error's class, because the text of errors such as KeyError says little.
    if not isinstance(error, psycopg.Error | PublishFailed | redis.RedisError | OSError):
        text = f"{type(error).__name__}: {text}" if str(error).strip() else text
    return text if len(text) <= _MAX_CHARS else text[: _MAX_CHARS - 1] + "…"
