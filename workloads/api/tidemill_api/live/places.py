"""Limits the number of live connections without an API key, for each address and in total."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tidemill_chassis.web.problems import Problem, unavailable

MOST, MOST_OF_ADDRESS = 500, 100


class Places:
    """Counts the WebSocket and SSE connections in this process that have no API key."""

    def __init__(self, most: int = MOST, most_of_address: int = MOST_OF_ADDRESS) -> None:
        self._most, self._most_of_address = most, most_of_address
        self._taken: Counter[str] = Counter()
        self._all = 0

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Places:
        """Read the limits from TIDEMILL_API_KEYLESS_CONNECTIONS and TIDEMILL_API_KEYLESS_PER_ADDRESS.

        Raises:
            ValueError: a variable is not a whole number of at least 0.
        """
        limits = []
        for name, usual in (("CONNECTIONS", MOST), ("PER_ADDRESS", MOST_OF_ADDRESS)):
            text = environ.get(f"TIDEMILL_API_KEYLESS_{name}") or str(usual)
            if not (text.isascii() and text.isdigit()):
                raise ValueError(f"TIDEMILL_API_KEYLESS_{name}: {text!r}; write a whole number of at least 0")
            limits.append(int(text))
        return cls(*limits)

    @contextmanager
    def taken(self, client: tuple[str, int] | None) -> Iterator[None]:
        """Count a connection while the `with` block runs.

        Raises:
            Problem: the limit for the address (429) or the total limit (503) is reached.
        """
        address = client[0] if client else ""
        if self._taken[address] >= self._most_of_address:
            raise Problem(
                429,
                "too_many_connections",
                f"{self._most_of_address} live connections without a key are open from this address; close some, or"
                " use a key (limit: TIDEMILL_API_KEYLESS_PER_ADDRESS)",
            )
        if self._all >= self._most:
            raise unavailable(
                "too_many_connections",
                f"{self._most} live connections without a key are open; try again later, or use a key (limit:"
                " TIDEMILL_API_KEYLESS_CONNECTIONS)",
                5,
            )
        self._taken[address] += 1
        self._all += 1
        try:
            yield
        finally:
            self._all -= 1
            self._taken[address] -= 1
            if not self._taken[address]:
                del self._taken[address]
