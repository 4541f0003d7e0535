"""A small HTTP server in a thread, for /health, /livez, /readyz and /metrics."""

from __future__ import annotations

import concurrent.futures
import json
import logging
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from tidemill_chassis.exposition import CONTENT_TYPE, exposition
from tidemill_chassis.web.hosts import REMEDY, Hosts

log = logging.getLogger(__name__)

Answer = tuple[int, str, bytes]
_JSON = "application/json"


class _Probe:
    def __init__(self, callback: Callable[[], Any], timeout_seconds: float) -> None:
        self._callback, self._timeout = callback, timeout_seconds
        self._lock = threading.Lock()
        self._pending: concurrent.futures.Future[Any] | None = None

    def ask(self) -> Any:
        with self._lock:
            if self._pending is None or self._pending.done():
                self._pending = concurrent.futures.Future()
                # A daemon thread does not delay the exit of the process, unlike the threads of an executor.
                threading.Thread(target=self._run, args=(self._pending,), name="status-probe", daemon=True).start()
            pending = self._pending
        try:
            return pending.result(self._timeout)
        except concurrent.futures.TimeoutError:
            if pending.done():
                raise
            raise TimeoutError(f"the process did not answer its own health check within {self._timeout:g} s") from None

    def _run(self, future: concurrent.futures.Future[Any]) -> None:
        try:
            future.set_result(self._callback())
        except BaseException as error:
            future.set_exception(error)


class StatusServer:
    """An HTTP server in daemon threads.

    Args:
        port: the port to listen on, or 0 to choose a free port.
        limit_seconds: the timeout of a callback, after which the answer is 503.
        hosts: the host names that requests may contain, or None to accept all.
    """

    def __init__(
        self,
        host: str,
        port: int,
        health: Callable[[], tuple[int, dict[str, Any]]],
        ready: Callable[[], bool],
        live: Callable[[], bool],
        *,
        timeout_seconds: float = 5.0,
        hosts: Hosts | None = None,
    ) -> None:
        self.hosts = hosts or Hosts(())
        self._probes = {
            "/health": _Probe(health, timeout_seconds),
            "/readyz": _Probe(ready, timeout_seconds),
            "/livez": _Probe(live, timeout_seconds),
        }
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        server = type(
            "_Server",
            (ThreadingHTTPServer,),
            {"address_family": family, "daemon_threads": True, "block_on_close": False},
        )
        handler = type("_BoundHandler", (_Handler,), {"owner": self})
        self._server: ThreadingHTTPServer = server((host, port), handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="status-server", daemon=True
        )

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Start the server."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the server. Stopping the server twice, or before `start`, does no harm."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def answer(self, path: str) -> Answer:
        """Return status code, content type and body for a path."""
        if path == "/metrics":
            return 200, CONTENT_TYPE, exposition()
        probe = self._probes.get(path)
        if probe is None:
            return _json(
                404,
                {
                    "title": "Not Found",
                    "status": 404,
                    "detail": f"there is no path {path}; try /health, /livez, /readyz or /metrics",
                },
            )
        try:
            reply = probe.ask()
            if path == "/health":
                code, body = reply
                return _json(int(code), body)
            return _json(200 if reply else 503, {"ok": bool(reply)})
        except Exception as error:
            log.warning("%s: %s: %s", path, type(error).__name__, error)
            return _json(503, {"status": "unhealthy", "ok": False, "detail": f"{type(error).__name__}: {error}"})


def _json(code: int, body: Any) -> Answer:
    return code, _JSON, json.dumps(body, default=str).encode()


class _Handler(BaseHTTPRequestHandler):
    owner: ClassVar[StatusServer]
    timeout = 5
    """Seconds until a silent client is disconnected."""
    server_version, sys_version = "tidemill", ""

    def do_GET(self) -> None:
        try:
            if self.owner.hosts.allow(self.headers.get("Host")):
                code, kind, body = self.owner.answer(self.path.partition("?")[0])
            else:
                code, kind, body = _json(421, {"title": "Misdirected Request", "status": 421, "detail": REMEDY})
        except Exception as error:
            code, kind, body = _json(503, {"detail": f"{type(error).__name__}: {error}"})
        try:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
        except OSError:
            self.close_connection = True  # the client has disconnected

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: probes and scrapes arrive every few seconds."""
