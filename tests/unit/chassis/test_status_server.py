"""Tests of the status server: health, readiness, liveness and metrics over HTTP."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tidemill_chassis.status_server import StatusServer


def _raise() -> Any:
    raise RuntimeError("connection lost")


@contextmanager
def serving(
    health: Callable[[], Any] = lambda: (200, {"status": "healthy"}),
    ready: Callable[[], Any] = lambda: True,
    live: Callable[[], Any] = lambda: True,
    timeout_seconds: float = 5,
) -> Iterator[StatusServer]:
    server = StatusServer("127.0.0.1", 0, health, ready, live, timeout_seconds=timeout_seconds)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def request(server: StatusServer, path: str, method: str = "GET") -> tuple[int, str, bytes]:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"] or "", response.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("path", "callbacks", "code", "body"),
    [
        ("/health", {}, 200, {"status": "healthy"}),
        ("/health?full=1", {}, 200, {"status": "healthy"}),
        ("/health", {"health": lambda: (503, {"status": "unhealthy"})}, 503, {"status": "unhealthy"}),
        ("/readyz", {}, 200, {"ok": True}),
        ("/readyz", {"ready": lambda: False}, 503, {"ok": False}),
        ("/livez", {}, 200, {"ok": True}),
        ("/livez", {"live": lambda: False}, 503, {"ok": False}),
    ],
)
def test_each_path_answers_with_the_result_of_its_callback(
    path: str, callbacks: dict[str, Any], code: int, body: dict[str, Any]
) -> None:
    with serving(**callbacks) as server:
        status, kind, text = request(server, path)
    assert (status, kind, json.loads(text)) == (code, "application/json", body)


@pytest.mark.parametrize(("path", "name"), [("/health", "health"), ("/readyz", "ready"), ("/livez", "live")])
def test_a_callback_that_raises_is_answered_with_503_and_the_error(path: str, name: str) -> None:
    with serving(**{name: _raise}) as server:
        for _ in range(2):
            code, _, text = request(server, path)
            assert (code, json.loads(text)["detail"]) == (503, "RuntimeError: connection lost")


@pytest.mark.parametrize("answer", [None, 3, (200,), ("x", {}), (200, {1: {2, 3}})], ids=str)
def test_an_invalid_result_of_a_callback_gets_an_answer(answer: Any) -> None:
    with serving(health=lambda: answer) as server:
        code, _, text = request(server, "/health")
    assert code in (200, 503)
    assert json.loads(text)


def test_a_callback_that_hangs_is_answered_with_503_and_not_called_again_meanwhile() -> None:
    release, calls = threading.Event(), []

    def hang() -> bool:
        calls.append(1)
        release.wait(30)
        return True

    with serving(ready=hang, timeout_seconds=0.05) as server:
        for _ in range(3):
            code, _, text = request(server, "/readyz")
            assert (code, json.loads(text)["detail"].split(":")[0]) == (503, "TimeoutError")
        assert request(server, "/livez")[0] == 200
        assert calls == [1]
        release.set()


def test_metrics_are_in_the_text_format_of_prometheus() -> None:
    with serving() as server:
        code, kind, text = request(server, "/metrics")
    names = {family.name for family in text_string_to_metric_families(text.decode())}
    assert (code, kind.split(";")[0]) == (200, "text/plain")
    assert "process_resident_memory_bytes" in names
    assert b"_created" not in text


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [("GET", "/", 404), ("GET", "/health/x", 404), ("POST", "/health", 501), ("HEAD", "/health", 200)],
)
def test_unknown_paths_and_methods_are_errors_and_head_has_no_body(method: str, path: str, code: int) -> None:
    with serving() as server:
        status, _, text = request(server, path, method)
    assert status == code
    assert method != "HEAD" or text == b""


def test_a_silent_client_does_not_delay_other_clients() -> None:
    with serving() as server, socket.create_connection(("127.0.0.1", server.port)):
        assert request(server, "/livez")[0] == 200


def test_stop_frees_the_port_and_may_be_repeated() -> None:
    with serving() as server:
        port = server.port
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_stop_without_a_start_frees_the_port() -> None:
    server = StatusServer("127.0.0.1", 0, lambda: (200, {}), lambda: True, lambda: True)
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)


def test_a_port_in_use_is_an_error_at_once() -> None:
    with serving() as server, pytest.raises(OSError, match="in use"):
        StatusServer("127.0.0.1", server.port, lambda: (200, {}), lambda: True, lambda: True)
