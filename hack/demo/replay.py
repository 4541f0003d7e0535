"""Sends batches of events to ingest over several HTTP connections, without exceeding the pipeline's `maxDisorder`.

Only unacknowledged events are sent again. A batch waits while it is more than `maxDisorder` newer than an
unacknowledged batch. Thus no event is late, whatever the order of the answers.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx

from demo.runtime import DemoError

CONNECTIONS = 4
_BATCH_SECONDS = 180.0
_RETRY_SECONDS = 1.0
_OVERLOADED = (429, 503)
_ACCEPTED = (200, 207, 422)


@dataclass(frozen=True)
class Batch:
    """Consecutive events.

    Attributes:
        events: The events, each as one JSON object.
        first_ms: The event time of the first event.
        last_ms: The event time of the last event.
    """

    events: Sequence[bytes]
    first_ms: int
    last_ms: int


def to_batches(events: Sequence[bytes], times_ms: Sequence[int], size: int) -> list[Batch]:
    """Divide events, which are ordered by time, into batches."""
    return [
        Batch(events[at : at + size], times_ms[at], times_ms[min(at + size, len(events)) - 1])
        for at in range(0, len(events), size)
    ]


@dataclass
class Totals:
    """The answers of ingest so far.

    Attributes:
        retried: The number of events that were sent again because ingest requested it.
        unanswered: The number of events in requests without an answer, which were sent again with the same key.
    """

    accepted: int = 0
    quarantined: int = 0
    retried: int = 0
    unanswered: int = 0

    @property
    def acknowledged(self) -> int:
        """The number of events that are in Kafka."""
        return self.accepted + self.quarantined

    @property
    def uncertain(self) -> int:
        """The number of events that may be in Kafka twice, because an acknowledgement was lost or late."""
        return self.retried + self.unanswered


class Replay:
    """Sends all batches once.

    Args:
        url: The base URL of ingest.
        pipeline: The name of the pipeline.
        disorder_ms: The maximum age of an event relative to the newest one.
        gate: A function that is called before each batch with the number of earlier events. It may block, to slow the
            replay down.
        on_progress: A function that is called with the number of acknowledged events.
    """

    def __init__(
        self,
        url: str,
        pipeline: str,
        *,
        disorder_ms: int,
        gate: Callable[[int], None] = lambda _: None,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._target = f"{url}/v1/pipelines/{pipeline}/events"
        self._disorder_ms = disorder_ms
        self._gate = gate
        self._on_progress = on_progress
        self._turn = threading.Condition()
        self._waiting: dict[int, int] = {}
        self._failed: BaseException | None = None
        self.totals = Totals()

    def run(self, batches: Sequence[Batch]) -> Totals:
        """Send all batches.

        Raises:
            DemoError: A batch is refused, or is not accepted within minutes.
        """
        limits = httpx.Limits(max_connections=CONNECTIONS)
        with (
            httpx.Client(timeout=60.0, limits=limits, trust_env=False) as client,
            ThreadPoolExecutor(CONNECTIONS) as pool,
        ):
            before = 0
            futures = []
            for number, batch in enumerate(batches):
                self._gate(before)
                self._await_turn(number, batch)
                if self._failed:
                    break
                futures.append(pool.submit(self._deliver, client, number, batch))
                before += len(batch.events)
            for future in futures:
                future.result()
        return self.totals

    def _await_turn(self, number: int, batch: Batch) -> None:
        def may_go() -> bool:
            oldest = min(self._waiting.values(), default=batch.first_ms)
            room = len(self._waiting) < CONNECTIONS
            return (
                self._failed is not None or not self._waiting or (room and batch.last_ms - oldest <= self._disorder_ms)
            )

        with self._turn:
            self._turn.wait_for(may_go)
            self._waiting[number] = batch.first_ms

    def _deliver(self, client: httpx.Client, number: int, batch: Batch) -> None:
        try:
            self._send(client, batch.events)
        except BaseException as error:
            self._failed = error
            raise
        finally:
            with self._turn:
                del self._waiting[number]
                self._turn.notify_all()

    def _send(self, client: httpx.Client, events: Sequence[bytes]) -> None:
        """Send a batch until every event is acknowledged."""
        deadline = time.monotonic() + _BATCH_SECONDS
        key = uuid.uuid4().hex
        while events:
            headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": key}
            pause = _RETRY_SECONDS
            try:
                response = client.post(self._target, content=b"\n".join(events) + b"\n", headers=headers)
            except httpx.TransportError as error:
                # It is unknown whether the request arrived. With the same key, ingest writes its events only once.
                problem = f"{type(error).__name__}: {error}"
                with self._turn:
                    self.totals.unanswered += len(events)
            else:
                if response.status_code in _ACCEPTED:
                    events = self._count_outcomes(response.json(), events)
                    key = uuid.uuid4().hex
                elif response.status_code not in _OVERLOADED:
                    raise DemoError(f"ingest refused a batch: {response.status_code} {response.text[:500]}")
                problem = f"{response.status_code} {response.text[:200]}"
                pause = float(response.headers.get("Retry-After", 0) or 0) if events else 0.0
            if events:
                if time.monotonic() > deadline:
                    raise DemoError(f"a batch was not accepted within {_BATCH_SECONDS:.0f} s; last: {problem}")
                time.sleep(max(pause, 0.05))

    def _count_outcomes(self, answer: dict[str, object], events: Sequence[bytes]) -> list[bytes]:
        """Count the acknowledged events, and return the events that must be sent again."""
        results = answer.get("results", [])
        assert isinstance(results, list)  # noqa: S101
        again = [events[row["index"]] for row in results if row["status"] == "retry"]
        with self._turn:
            self.totals.accepted += int(str(answer["accepted"]))
            self.totals.quarantined += int(str(answer["quarantined"]))
            self.totals.retried += len(again)
            acknowledged = self.totals.acknowledged
        self._on_progress(acknowledged)
        return again
