"""Encodes rows in separate threads if encoding takes long, as for many rows and for sketches.

Python switches between threads every few milliseconds. There are only a few threads, so the event loop continues soon.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tidemill_api.query.selection import Column

T = TypeVar("T")
QUICK_ROWS = 200
"""Up to this number of rows, encoding without sketches is faster than starting work in a thread."""
_WORKERS = ThreadPoolExecutor(2, thread_name_prefix="encode")


async def encoded(columns: Sequence[Column], rows: Sequence[Any], encode: Callable[[], T]) -> T:
    """Return the result of `encode`, which encodes these rows, without blocking the event loop for long."""
    if len(rows) <= QUICK_ROWS and not any(column.decode for column in columns):
        return encode()
    return await asyncio.get_running_loop().run_in_executor(_WORKERS, encode)
