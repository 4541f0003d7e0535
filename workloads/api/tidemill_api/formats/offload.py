"""Encodes rows in separate threads if encoding may block the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tidemill_api.query.selection import Column

T = TypeVar("T")
QUICK_ROWS = 200
"""Maximum number of rows that are encoded without a separate thread."""
_WORKERS = ThreadPoolExecutor(2, thread_name_prefix="encode")


async def run_encoder(columns: Sequence[Column], rows: Sequence[Any], encode: Callable[[], T]) -> T:
    """Call `encode` and return its result. A call that can be slow runs in a thread."""
    if len(rows) <= QUICK_ROWS and not any(column.decode for column in columns):
        return encode()
    return await asyncio.get_running_loop().run_in_executor(_WORKERS, encode)
