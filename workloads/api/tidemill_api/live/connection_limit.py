"""Limits the number of live connections without an API key, for each address and in total."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tidemill_chassis.web.problems import Problem, unavailable

MAX_TOTAL, MAX_PER_ADDRESS = 500, 100


class ConnectionLimit:
    """Counts the WebSocket and SSE connections in this process that have no API key."""

    def __init__(self, max_total: int = MAX_TOTAL, max_per_address: int = MAX_PER_ADDRESS) -> None:
        self._max_total, self._max_per_address = max_total, max_per_address
        self._count_by_address: Counter[str] = Counter()
        self._total = 0

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> ConnectionLimit:
        """Read the limits from TIDEMILL_API_KEYLESS_CONNECTIONS and TIDEMILL_API_KEYLESS_PER_ADDRESS.

        Raises:
            ValueError: a variable is not a whole number of at least 0.
        """
        limits = []
        for name, default in (("CONNECTIONS", MAX_TOTAL), ("PER_ADDRESS", MAX_PER_ADDRESS)):
            text = environ.get(f"TIDEMILL_API_KEYLESS_{name}") or str(default)
            if not (text.isascii() and text.isdigit()):
                raise ValueError(f"TIDEMILL_API_KEYLESS_{name}: {text!r}; write a whole number of at least 0")
            limits.append(int(text))
        return cls(*limits)

    @contextmanager
    def reserve(self, client: tuple[str, int] | None) -> Iterator[None]:
        """Count a connection while the `with` block runs.

        Raises:
            Problem: the limit for the address (429) or the total limit (503) is reached.
        """
        address = client[0] if client else ""
        if self._count_by_address[address] >= self._max_per_address:
            raise Problem(
                429,
                "too_many_connections",
                f"{self._max_per_address} live connections without a key are open from this address; close some, or"
                " use a key (limit: TIDEMILL_API_KEYLESS_PER_ADDRESS)",
            )
        if self._total >= self._max_total:
            raise unavailable(
                "too_many_connections",
                f"{self._max_total} live connections without a key are open; try again later, or use a key (limit:"
                " TIDEMILL_API_KEYLESS_CONNECTIONS)",
                5,
            )
        self._count_by_address[address] += 1
        self._total += 1
        try:
            yield
        finally:
            self._total -= 1
            self._count_by_address[address] -= 1
            if not self._count_by_address[address]:
                del self._count_by_address[address]
