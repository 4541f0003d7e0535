"""Tests of the replay against a scripted server: each event is acknowledged once, and no event is too old."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from demo.replay import Replay, to_batches
from demo.runtime import DemoError

Script = Callable[[list[int], int], tuple[int, dict[str, str], dict[str, Any]]]
ALL = (200, {}, {})


class Server:
    """A server that stores the events that it acknowledges; `script(events, request number)` returns its answers."""

    def __init__(self, script: Script) -> None:
        self.acknowledged: list[int] = []
        self.keys: list[str] = []
        self.requests = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                events = [int(json.loads(line)) for line in body.splitlines()]
                with lock:
                    outer.requests += 1
                    outer.keys.append(self.headers["Idempotency-Key"])
                    status, headers, answer = script(events, outer.requests)
                    retry = {row["index"] for row in answer.get("results", ())}
                    good = [e for i, e in enumerate(events) if i not in retry] if status in (200, 207) else []
                    outer.acknowledged += good
                text = json.dumps(
                    {"accepted": len(good), "quarantined": 0, "retry": len(retry), "results": [], **answer}
                )
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(text))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,))
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[[Script], Server]]:
    """Start servers with scripts."""
    servers: list[Server] = []

    def start(script: Script) -> Server:
        servers.append(Server(script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def events(count: int) -> list[bytes]:
    """Return events, each a number that is also its event time."""
    return [str(number).encode() for number in range(count)]


def replay(server: Server, count: int, *, size: int = 10, disorder_ms: int = 1_000) -> Replay:
    """Run a replay of some events, and return the finished replay."""
    run = Replay(server.url, "p", disorder_ms=disorder_ms)
    run.run(to_batches(events(count), list(range(count)), size))
    return run


SCRIPTS: list[tuple[str, Script]] = [
    ("all is well", lambda _, __: ALL),
    ("overloaded at first", lambda _, n: (503, {"Retry-After": "0"}, {}) if n <= 3 else ALL),
    ("over quota once", lambda _, n: (429, {}, {}) if n == 2 else ALL),
    (
        "some records were not acknowledged",
        lambda e, n: (207, {}, {"results": [{"index": len(e) - 1, "status": "retry"}]}) if n <= 4 else ALL,
    ),
]


@pytest.mark.parametrize(("reason", "script"), SCRIPTS, ids=[row[0] for row in SCRIPTS])
def test_every_event_is_acknowledged_once(serve: Callable[[Script], Server], reason: str, script: Script) -> None:
    """Only unacknowledged events are sent again."""
    server = serve(script)
    totals = replay(server, 95).totals
    assert sorted(server.acknowledged) == list(range(95)), reason
    assert totals.accepted == 95


def test_a_repeated_batch_has_the_same_idempotency_key(serve: Callable[[Script], Server]) -> None:
    """A new batch has another key."""
    server = serve(lambda _, n: (503, {"Retry-After": "0"}, {}) if n == 1 else ALL)
    replay(server, 20, disorder_ms=0)
    assert server.keys[0] == server.keys[1]
    assert server.keys[2] != server.keys[1]


def test_no_event_is_older_than_the_disorder_allows(serve: Callable[[Script], Server]) -> None:
    """Each acknowledged event is at most `maxDisorder` older than the newest event before."""
    server = serve(lambda e, n: (503, {"Retry-After": "0"}, {}) if n % 5 == 1 else ALL)
    replay(server, 400, disorder_ms=25)
    newest = -1
    for event in server.acknowledged:
        assert newest - event <= 25
        newest = max(newest, event)
    assert len(server.acknowledged) == 400


def test_a_refused_batch_ends_the_replay(serve: Callable[[Script], Server]) -> None:
    """A batch with a final refusal is not sent again."""
    server = serve(lambda _, __: (413, {}, {"title": "too large"}))
    with pytest.raises(DemoError, match="413"):
        replay(server, 10)
    assert server.requests == 1


def test_batches_contain_every_event_in_order_and_their_first_and_last_times() -> None:
    batches = to_batches(events(25), list(range(25)), 10)
    assert [event for batch in batches for event in batch.events] == events(25)
    assert [(b.first_ms, b.last_ms) for b in batches] == [(0, 9), (10, 19), (20, 24)]
