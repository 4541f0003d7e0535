"""Encodes rows in separate threads if this takes long, for example for many rows or for sketches.

Python switches between threads every few milliseconds. There are only two encoding threads, so the event loop soon gets
its next turn.
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
    """Call `encode`, which encodes `rows`, and return its result. If this may take long, call it in another thread."""
    if len(rows) <= QUICK_ROWS and not any(column.decode for column in columns):
        return encode()
    return await asyncio.get_running_loop().run_in_executor(_WORKERS, encode)
