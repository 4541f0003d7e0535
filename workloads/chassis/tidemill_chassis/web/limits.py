"""Limits connections, and the number, size and receiving time of request headers."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_REFUSED = b"HTTP/1.1 %b\r\ncontent-length: 0\r\nconnection: close\r\n%b\r\n"
_BUSY = _REFUSED % (b"503 Service Unavailable", b"retry-after: 2\r\n")
_TOO_LARGE = _REFUSED % (b"431 Request Header Fields Too Large", b"")
_TIMED_OUT = _REFUSED % (b"408 Request Timeout", b"")

_OTHER_DESCRIPTORS = 200


@dataclass(frozen=True)
class HttpLimits:
    """Limits on the connections and request headers of a process."""

    connections: int = 2_000
    headers: int = 100
    header_bytes: int = 32 * 1024
    header_seconds: float = 10.0

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> HttpLimits:
        """Return the default limits. If set, TIDEMILL_HTTP_CONNECTIONS replaces the default number of connections.

        Raises:
            ValueError: the variable is not a whole number of at least 1.
        """
        text = environ.get("TIDEMILL_HTTP_CONNECTIONS") or str(cls.connections)
        if not (text.isascii() and text.isdigit() and int(text)):
            raise ValueError(f"TIDEMILL_HTTP_CONNECTIONS: {text!r}; write a whole number of at least 1")
        # reserve some file descriptors for files, and for connections to Kafka, Postgres and Redis
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        maximum = max(1, descriptors - _OTHER_DESCRIPTORS) if descriptors != resource.RLIM_INFINITY else int(text)
        return cls(connections=min(int(text), maximum))


class _TooLarge(Exception):
    """The error for headers that exceed a limit."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits for the head of a request (the request line and the headers)."""

    limits: ClassVar[HttpLimits] = HttpLimits()
    _timer: asyncio.TimerHandle | None = None
    _pending_bytes = 0
    """How many bytes of an incomplete head were received."""
    _large = False
    """Whether the request's head may be too large. In that case, the exact size is computed."""
    _too_large = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, or answer 503 if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self.transport.write(_BUSY)
            self.transport.close()
            return
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer of the connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received data. Refuse a request head that is too large, and start the timer of an incomplete head."""
        before = self.cycle
        self._large = len(data) + self._pending_bytes > self.limits.header_bytes
        HttpToolsProtocol.data_received(self, data)
        cycle = self.cycle
        if cycle is not None and cycle.scope is self.scope:
            if cycle is before and cycle.response_complete and self._timer is None:
                self._start_timer()  # empty lines stop uvicorn's keep-alive timer without starting a request
            return
        if self.transport.is_closing() or self not in self.connections:
            return  # the connection was closed or became a WebSocket
        # Do not count data that may belong to the body of an earlier request.
        if cycle is before and (before is None or before.response_complete):
            self._pending_bytes += len(data)
        if self._pending_bytes > self.limits.header_bytes:
            self._refuse_head()
        elif self._timer is None:
            self._start_timer()

    def on_headers_complete(self) -> None:
        """Check the number and the size of a request's headers."""
        if len(self.headers) > self.limits.headers or (self._large and self._head_bytes() > self.limits.header_bytes):
            self._too_large = True
            raise _TooLarge
        if self._timer is not None:
            self._stop_timer()
        HttpToolsProtocol.on_headers_complete(self)

    def send_400_response(self, msg: str) -> None:
        """Answer 431 if the head is too large, or 400 for other errors, as uvicorn does."""
        if not self._too_large:
            super().send_400_response(msg)
        elif not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _refuse_head(self) -> None:
        self._too_large = True
        self.send_400_response("")

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.limits.header_seconds, self._time_out)

    def _stop_timer(self) -> None:
        self._pending_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            if self._pending_bytes:
                self.transport.write(_TIMED_OUT)
            self.transport.close()


def bounded_protocol(limits: HttpLimits) -> type[Any]:
    """Return the protocol class with these limits, for uvicorn's setting `http`."""
    return type("_Bounded", (BoundedProtocol,), {"limits": limits})
