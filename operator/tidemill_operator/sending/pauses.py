"""Yields the events of a slow stream, and None at intervals.

None means: send the events so far.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator

from tidemill_operator.event_files.event_file import Event

_MAX_WAITING = 10_000


def with_pauses(events: Iterable[Event], seconds: float) -> Iterator[Event | None]:
    """Yield the events, and yield None about every `seconds` seconds, with or without new events."""
    event_queue: queue.Queue[Event | BaseException | None] = queue.Queue(_MAX_WAITING)

    def read() -> None:
        try:
            for event in events:
                event_queue.put(event)
        except BaseException as error:  # pass the error to the thread that reads the queue
            event_queue.put(error)
        event_queue.put(None)

    threading.Thread(target=read, name="read", daemon=True).start()
    due = time.monotonic() + seconds
    while True:
        try:
            received = event_queue.get(timeout=max(0.001, due - time.monotonic()))
        except queue.Empty:
            due = time.monotonic() + seconds
            yield None
            continue
        if isinstance(received, BaseException):
            raise received
        if received is None:
            return
        yield received
        if time.monotonic() >= due:
            due = time.monotonic() + seconds
            yield None
