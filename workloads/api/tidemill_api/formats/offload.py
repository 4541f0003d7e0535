"""Rows become JSON on threads of their own where that takes long: decoding sketches, and many rows.

Threads take turns with the event loop every few milliseconds. They are few, so that they leave it its turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tidemill_api.query.selection import Column

T = TypeVar("T")
QUICK_ROWS = 200
"""So many rows without sketches are encoded faster than a thread is woken and heard."""
_WORKERS = ThreadPoolExecutor(2, thread_name_prefix="encode")


async def encoded(columns: Sequence[Column], rows: Sequence[Any], encode: Callable[[], T]) -> T:
    """What `encode` makes of rows with these columns; the event loop goes on meanwhile."""
    if len(rows) <= QUICK_ROWS and not any(column.decode for column in columns):
        return encode()
    return await asyncio.get_running_loop().run_in_executor(_WORKERS, encode)
