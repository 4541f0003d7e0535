"""Tests of `tidemill send`: events are sent in batches and counted once, also after faults. Ingest is in memory."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tidemill_contract.events.fields import MAX_EVENT_BYTES
from tidemill_contract.resource.source import FieldSpec
from tidemill_operator.event_files.content import EventFileError
from tidemill_operator.event_files.event_file import Event, EventFile
from tidemill_operator.sending import sender as sending
from tidemill_operator.sending.batches import MAX_BYTES, cut_batches
from tidemill_operator.sending.client import Client, SendError
from tidemill_operator.sending.pauses import with_pauses
from tidemill_operator.sending.progress import Progress
from tidemill_operator.sending.resume_file import ResumePoint
from tidemill_operator.sending.sender import Sender, SendOptions, Summary

Handler = Callable[[httpx.Request], httpx.Response | None]
URL = "http://ingest.test"


class Ingest:
    """Ingest in memory, which keeps its events.

    Attributes:
        events: accepted events, each once.
        requests: all requests, also those with known keys.
        before: called with each request; its response replaces the one of ingest.
    """

    def __init__(self) -> None:
        self.events: list[str] = []
        self.requests: list[httpx.Request] = []
        self.before: Handler = lambda _: None
        self._known: dict[str, tuple[bytes, dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def client(self, **more: Any) -> Client:
        return Client(URL, "orders", transport=httpx.MockTransport(self._answer), **more)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        with self._lock:
            self.requests.append(request)
            body, key = request.read(), request.headers["idempotency-key"]
            replacement = self.before(request)
            if replacement is not None:
                return replacement
            if key in self._known:
                assert self._known[key][0] == body
                return httpx.Response(200, json=self._known[key][1], headers={"idempotency-replayed": "true"})
            return self._take(key, body)

    def _take(self, key: str, body: bytes) -> httpx.Response:
        lines = body.decode().split("\n")
        bad = [{"index": n, "status": "quarantined", "code": "mistyped", "field": "a"}
               for n, line in enumerate(lines) if "bad" in line]  # fmt: skip
        answer = {"accepted": len(lines) - len(bad), "quarantined": len(bad), "retry": 0, "results": bad}
        self.events += lines
        self._known[key] = body, answer
        if len(bad) == len(lines):
            return httpx.Response(422, json={"code": "no_valid_event", **answer})
        return httpx.Response(207 if bad else 200, json=answer)


@pytest.fixture
def ingest(monkeypatch: pytest.MonkeyPatch) -> Ingest:
    """Return an ingest in memory. Batches are small, and waits are short."""
    monkeypatch.setattr(sending, "MAX_EVENTS", 10)
    monkeypatch.setattr("tidemill_operator.sending.client._backoff", lambda _: 0.001)
    return Ingest()


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    path = tmp_path / "a.ndjson"
    path.write_text("".join(f'{{"a":{n}}}\n' for n in range(95)))
    return path


def send(ingest: Ingest, options: SendOptions, *, client: Client | None = None) -> Summary:
    client = client or ingest.client()
    with EventFile(options.path) as file:
        sender = Sender(file, client, options, Progress(lambda: file.fraction_read, io.StringIO()))
        try:
            sender.run()
        finally:
            ingest.summary = sender.summary  # type: ignore[attr-defined]
    return sender.summary


def send_options(path: Path, **more: Any) -> SendOptions:
    return SendOptions(path=path, pipeline="orders", **more)


@pytest.mark.parametrize("workers", [1, 4])
def test_every_event_is_sent_once(ingest: Ingest, numbers: Path, workers: int) -> None:
    summary = send(ingest, send_options(numbers, workers=workers))
    assert (summary.accepted, summary.refused, summary.replayed) == (95, 0, 0)
    assert sorted(ingest.events) == sorted(numbers.read_text().split())
    assert len(ingest.requests) == 10
    assert {request.url.path for request in ingest.requests} == {"/v1/pipelines/orders/events"}


def test_busy_and_lost_requests_are_repeated_with_their_keys(ingest: Ingest, numbers: Path) -> None:
    """The answer may be lost after ingest has accepted the batch."""
    faults = iter([429, 503, "lost before", "lost after", "not acknowledged", 502])

    def before(request: httpx.Request) -> httpx.Response | None:
        fault = next(faults, None)
        if fault == "lost before":
            raise httpx.ConnectError("refused")
        if fault == "lost after":
            ingest._take(request.headers["idempotency-key"], request.content)
            raise httpx.ReadError("reset")
        if fault == "not acknowledged":
            return httpx.Response(207, json={"accepted": 9, "quarantined": 0, "retry": 1, "results": []})
        return None if fault is None else httpx.Response(int(fault), json={}, headers={"retry-after": "0"})

    ingest.before = before
    summary = send(ingest, send_options(numbers))
    assert (summary.accepted, summary.replayed) == (95, 10)
    assert sorted(ingest.events) == sorted(numbers.read_text().split())


def test_a_file_that_is_sent_twice_is_counted_once(ingest: Ingest, numbers: Path) -> None:
    """The option `resend` sends the events again, and changed events are new."""
    send(ingest, send_options(numbers))
    assert send(ingest, send_options(numbers)).replayed == 95
    assert len(ingest.events) == 95
    assert send(ingest, send_options(numbers, resend=True)).replayed == 0
    numbers.write_text(numbers.read_text().replace('{"a":94}', '{"a":940}'))
    assert send(ingest, send_options(numbers)).replayed == 90


def test_an_interrupted_run_can_be_resumed(
    ingest: Ingest, numbers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resume file keeps the size of the batches, and with it their keys."""
    options = send_options(numbers, resume=tmp_path / "position", workers=3)
    permits = threading.Semaphore(4)

    def before(_: httpx.Request) -> httpx.Response | None:
        return None if permits.acquire(blocking=False) else httpx.Response(404, json={"code": "gone", "detail": "away"})

    ingest.before = before
    with pytest.raises(SendError, match="404 gone: away; check --pipeline and --url"):
        send(ingest, options)
    assert 0 < len(ingest.events) < 95
    ingest.before = lambda _: None
    monkeypatch.setattr(sending, "MAX_EVENTS", 7)
    summary = send(ingest, options)
    assert summary.skipped + summary.accepted == 95
    assert sorted(ingest.events) == sorted(numbers.read_text().split())
    with numbers.open("a") as file:
        file.write('{"a":95}\n')
    assert send(ingest, options).accepted == 1
    assert len(ingest.events) == 96


def test_the_position_stays_before_a_batch_that_was_not_accepted(ingest: Ingest, numbers: Path, tmp_path: Path) -> None:
    """Later batches that other workers sent are sent again, with keys that ingest knows."""

    def before(request: httpx.Request) -> httpx.Response | None:
        if b'"a":10}' in request.content:  # the second batch
            time.sleep(0.05)
            return httpx.Response(400, json={"code": "no", "detail": "never"})
        return None

    ingest.before = before
    options = send_options(numbers, resume=tmp_path / "position", workers=4)
    with pytest.raises(SendError, match="400 no: never"):
        send(ingest, options)
    assert ResumePoint.load(tmp_path / "position", numbers, "orders", 10).sent == 10
    ingest.before = lambda _: None
    send(ingest, options)
    assert sorted(ingest.events) == sorted(numbers.read_text().split())


def test_a_resume_file_of_another_file_is_refused(ingest: Ingest, numbers: Path, tmp_path: Path) -> None:
    position = tmp_path / "position"
    send(ingest, send_options(numbers, resume=position))
    other = tmp_path / "b.ndjson"
    other.write_text('{"a":1}\n')
    with pytest.raises(EventFileError, match=r"belongs to .* name another file"):
        send(ingest, send_options(other, resume=position))
    numbers.write_text('{"b":1}\n' + numbers.read_text())
    with pytest.raises(EventFileError, match="the beginning of the file has changed since it was sent"):
        send(ingest, send_options(numbers, resume=position))
    position.write_text("{}")
    with pytest.raises(EventFileError, match="is not a resume file"):
        send(ingest, send_options(numbers, resume=position))


def test_sending_stops_after_its_retry_timeout_and_names_the_answer(ingest: Ingest, numbers: Path) -> None:
    ingest.before = lambda _: httpx.Response(503, json={"code": "kafka_unavailable", "detail": "away"})
    with pytest.raises(SendError, match="503 kafka_unavailable: away; check that ingest runs, then send again"):
        send(ingest, send_options(numbers), client=ingest.client(retry_timeout_seconds=0.05))
    assert ingest.events == []


def test_sending_waits_as_long_as_ingest_asks(ingest: Ingest, numbers: Path) -> None:
    answers = iter([httpx.Response(429, json={}, headers={"retry-after": "0.2"})])
    ingest.before = lambda _: next(answers, None)
    began = time.monotonic()
    send(ingest, send_options(numbers))
    assert time.monotonic() - began >= 0.2


def test_a_rate_is_kept(ingest: Ingest, numbers: Path) -> None:
    """95 events at 400 a second take more than 0.2 s."""
    began = time.monotonic()
    send(ingest, send_options(numbers, rate=400))
    assert time.monotonic() - began >= 90 / 400
    assert send_options(numbers, rate=10).max_batch_events == 5
    assert send_options(numbers, rate=0.1).max_batch_events == 1


def test_refused_events_are_reported_with_their_lines(ingest: Ingest, tmp_path: Path) -> None:
    """The first ten have a line each. The others are counted."""
    path = tmp_path / "a.csv"
    path.write_text("a,b\n" + "".join(f"{n if n % 5 else 'bad'},x\n" for n in range(100)))
    field = FieldSpec.model_validate({"name": "a", "type": "integer"})
    summary = send(ingest, send_options(path, fields=[field]))
    assert (summary.accepted, summary.refused, len(summary.refusals)) == (80, 20, 10)
    assert summary.refusals[:2] == ['line 2: mistyped, field a: "bad"', 'line 7: mistyped, field a: "bad"']


def test_batches_without_a_valid_event_are_accepted(ingest: Ingest, tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_text('{"a":"bad"}\n' * 12)
    summary = send(ingest, send_options(path))
    assert (summary.accepted, summary.refused) == (0, 12)


def test_a_stopped_run_ends_soon(ingest: Ingest, numbers: Path) -> None:
    with EventFile(numbers) as file:
        sender = Sender(file, ingest.client(), send_options(numbers, rate=1), Progress(lambda: None, io.StringIO()))
        threading.Timer(0.1, sender.stop).start()
        with pytest.raises(SendError, match="stopped before the end"):
            sender.run()
    assert 0 < len(ingest.events) < 95


def test_a_key_depends_on_identity_and_content_of_its_batch() -> None:
    def events() -> Iterator[Event]:
        return (Event(n, b"{}") for n in range(25))

    first = [batch.key for batch in cut_batches(events(), identity="a", max_events=10)]
    assert first == [batch.key for batch in cut_batches(events(), identity="a", max_events=10)]
    assert len({*first, *(batch.key for batch in cut_batches(events(), identity="b", max_events=10))}) == 6
    assert all(len(key) < 255 for key in first)


def test_a_slow_stream_is_sent_in_time() -> None:
    """A batch ends after its time, even if it is not full."""
    go_on = threading.Event()

    def slow() -> Iterator[Event]:
        yield Event(1, b"1")
        yield Event(2, b"2")
        go_on.wait(20)
        yield Event(3, b"3")

    batches = cut_batches(with_pauses(slow(), 0.05), identity="a")
    assert next(batches).lines == (1, 2)
    go_on.set()
    assert [batch.lines for batch in batches] == [(3,)]


def test_an_error_of_a_stream_is_raised() -> None:
    def broken() -> Iterator[Event]:
        yield Event(1, b"1")
        raise EventFileError("broken")

    with pytest.raises(EventFileError, match="broken"):
        list(with_pauses(broken(), 1.0))


def test_batches_are_bounded_in_bytes() -> None:
    big = b"x" * (MAX_BYTES // 3)
    sizes = [len(batch.lines) for batch in cut_batches((Event(n, big) for n in range(7)), identity="a")]
    assert sizes == [2, 2, 2, 1] or sizes == [3, 3, 1]


def test_a_too_long_event_is_cut_so_that_only_it_is_refused() -> None:
    (first, second) = cut_batches([Event(1, b"x" * 20_000_000), Event(2, b"y")], identity="a", max_events=1)
    assert (len(first.body), len(second.body)) == (MAX_EVENT_BYTES + 1, 1)


def test_progress_is_only_shown_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for out in (io.StringIO(), Terminal()):
        progress = Progress(lambda: 0.5, out)
        progress._last -= 1
        progress.show(1000, 2)
        progress.end()
        assert ("50%  1,000 accepted, 2 refused" in out.getvalue()) is out.isatty()


def test_an_api_key_is_sent(ingest: Ingest, numbers: Path) -> None:
    send(ingest, send_options(numbers), client=ingest.client(api_key="secret"))
    assert {request.headers["authorization"] for request in ingest.requests} == {"Bearer secret"}
    assert json.loads(ingest.events[0]) == {"a": 0}
