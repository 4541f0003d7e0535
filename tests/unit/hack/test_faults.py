"""Tests of hack/faults: how reports are compared with the counted events, the table, and the proxy."""

from __future__ import annotations

import socket
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from faults import __main__ as faults
from faults import table, truth
from faults.checker import Outcome
from faults.play import Observations, unmet_expectations
from faults.proxy import Proxies, Proxy
from faults.rows import ROWS

# Events are counted until 10 and again from 40 on. From 20 to 30, the number is unknown.
COUNTED: list[tuple[float, Any]] = [
    *((float(at), at) for at in range(11)),
    *((float(at), 10) for at in range(11, 20)),
    *((float(at), None) for at in range(20, 30)),
    *((float(at), 10) for at in range(30, 40)),
    *((float(at), at) for at in range(40, 61)),
]


def test_a_stall_is_a_span_in_which_nothing_was_counted_or_the_number_is_unknown() -> None:
    assert truth.stalls(COUNTED, 0, 60) == [(10.0, 40.0)]
    assert truth.progress_spans(COUNTED, 0, 60) == [(0, 10.0), (40.0, 60)]


def test_a_stall_lasts_until_the_end_if_nothing_is_counted_again() -> None:
    assert truth.stalls(COUNTED[:35], 5, 35) == [(10.0, 35)]


@pytest.mark.parametrize(
    ("said", "expected", "reason"),
    [
        ([(float(at), "well") for at in range(60)], 30.0, "all the time"),
        ([(float(at), "well" if at < 25 else "ill") for at in range(60)], 14.0, "from 10 to 24"),
        ([(float(at), "ill" if 15 < at < 20 else "well") for at in range(60)], 20.0, "after an interruption"),
        ([(float(at), "ill") for at in range(60)], 0.0, "never"),
    ],
)
def test_the_longest_time_of_healthy_reports_within_a_stall_is_measured(
    said: list[tuple[float, Any]], expected: float, reason: str
) -> None:
    assert truth.longest_time(said, [(10.0, 40.0)], lambda what: what == "well") == expected, reason


def test_a_figure_that_does_not_change_is_old_and_a_missing_figure_is_not() -> None:
    said = [(float(at), min(at, 20)) for at in range(41)]
    assert truth.longest_unchanged(said, [(10.0, 40.0)], lambda what: what is not None) == 20.0
    assert truth.longest_unchanged([(at, None) for at, _ in said], [(10.0, 40.0)], lambda what: what is not None) == 0.0


def test_the_counter_of_a_new_process_begins_with_zero_and_only_increases_are_named() -> None:
    before = (0.0, {"a": 1, "b": 2})
    assert truth.increased_counters([before, (1.0, {"b": 2}), (2.0, None), (3.0, {"a": 0, "b": 2})]) == ()
    assert truth.increased_counters([before, (1.0, {"b": 2}), (2.0, {"a": 0, "b": 2}), (3.0, {"a": 1, "b": 2})]) == (
        "a",
    )
    assert truth.increased_counters([before, (1.0, {"a": 1, "b": 3})]) == ("b",)


def test_a_lag_of_zero_is_correct_while_all_acknowledged_events_are_counted() -> None:
    lags = [(1.0, 0), (2.0, 0), (3.0, 5), (4.0, 0), (5.0, 0), (6.0, None)]
    waiting = [(1.5, 0), (3.5, None), (4.5, 7)]
    assert truth.without_true_zeros(lags, waiting) == [(1.0, 0), (2.0, None), *lags[2:]]


def test_the_time_of_the_first_matching_report_is_measured_from_the_begin() -> None:
    said = [(1.0, "a"), (2.0, "b"), (3.0, "b")]
    assert truth.first_report_after(said, 0.5, 9, lambda what: what == "b") == 1.5
    assert truth.first_report_after(said, 0.5, 9, lambda what: what == "c") is None


@pytest.fixture
def echo() -> Iterator[int]:
    """Start a server that sends back all bytes, and return its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(peer: socket.socket) -> None:
        with peer:
            while piece := peer.recv(65_536):
                peer.sendall(piece)

    def accept() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(peer,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield int(listener.getsockname()[1])
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    proxies = Proxies()
    yield proxies.open(echo)
    proxies.close()


def ask(peer: socket.socket, text: bytes) -> bytes:
    peer.sendall(text)
    answer = b""
    while len(answer) < len(text):
        answer += peer.recv(65_536)
    return answer


def connected(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=2)


def test_a_proxy_forwards_bytes_in_order(proxy: Proxy) -> None:
    with connected(proxy) as peer:
        text = bytes(range(256)) * 4_000
        threading.Thread(target=peer.sendall, args=(text,), daemon=True).start()
        answer = b""
        while len(answer) < len(text):
            answer += peer.recv(65_536)
        assert answer == text


def test_a_connection_that_lost_bytes_in_a_black_hole_remains_silent(proxy: Proxy) -> None:
    """The black hole refuses no connection. Later connections, and connections without lost bytes, work."""
    with connected(proxy) as before, connected(proxy) as other:
        assert ask(before, b"a") == b"a"
        proxy.swallows = True
        before.sendall(b"b")
        during = connected(proxy)
        during.sendall(b"c")
        for silent in (before, during):
            with pytest.raises(TimeoutError):
                silent.recv(1)
        proxy.swallows = False
        with connected(proxy) as after:
            assert ask(after, b"d") == b"d"
        assert ask(other, b"e") == b"e"
        for silent in (before, during):
            silent.sendall(b"f")
            with pytest.raises(TimeoutError):
                silent.recv(1)
        during.close()


def test_a_slow_proxy_delays_each_piece(proxy: Proxy) -> None:
    proxy.delay_seconds = 0.2
    with connected(proxy) as peer:
        began = time.monotonic()
        assert ask(peer, b"a") == b"a"
        assert 0.4 <= time.monotonic() - began < 2


def test_a_proxy_of_a_port_without_a_server_closes_connections(echo: int) -> None:
    """A killed server has such a port."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = int(closed.getsockname()[1])
    proxies = Proxies()
    try:
        with connected(proxies.open(port)) as peer:
            assert peer.recv(1) == b""
    finally:
        proxies.close()


WELL = Observations(
    lasted=40.0,
    reported={"processor": 9.0, "api": 12.0},
    moved=1.0,
    well=2.0,
    still=40.0,
    counted=0,
    said={"processor": "unhealthy (postgres)", "api": "unhealthy (postgres)", "ready": "False Unreachable"},
)
EXACT = Outcome(counted=100, dead=3, lost=0, doubled=0, wrong=0)


@pytest.mark.parametrize(
    ("name", "seen", "verdict", "faults"),
    [
        ("postgres-frozen", {}, {}, []),
        ("postgres-frozen", {"reported": {"api": 31.0, "ready": 30.0}}, {}, ["api reported it after 31 s"]),
        ("postgres-frozen", {"reported": {"api": None, "ready": 9.0}}, {}, ["api did not report it"]),
        ("postgres-frozen", {"reported": {"api": None}, "lasted": 20.0}, {}, []),
        ("postgres-frozen", {"lies": {"ready": 31.0, "gauge": 30.0}}, {}, ["ready reported no fault for 31 s"]),
        ("postgres-frozen", {"well": 11.0}, {}, ["healthy 11 s after events were counted"]),
        (
            "postgres-frozen",
            {"well": 11.0, "last": "ready: False Waiting"},
            {},
            ["healthy 11 s after events were counted (ready: False Waiting)"],
        ),
        (
            "postgres-frozen",
            {"restarted": ("faults.faults-processor-0",)},
            {},
            ["faults.faults-processor-0 was restarted"],
        ),
        ("processor-killed", {"restarted": ("faults.faults-processor-0",), "still": 9.0}, {}, []),
        ("broker-killed", {}, {}, ["nothing was counted for 40 s"]),
        ("broker-killed", {"still": 9.0, "alarms": {"ready": 11.0}}, {}, ["ready reported a fault for 11 s"]),
        ("postgres-frozen", {}, {"lost": 1, "doubled": 2, "wrong": 3}, ["lost 1, doubled 2, wrong 3"]),
    ],
)
def test_unmet_expectations_of_a_row_are_listed(
    name: str, seen: dict[str, Any], verdict: dict[str, Any], faults: list[str]
) -> None:
    assert unmet_expectations(ROWS[name], replace(WELL, **seen), replace(EXACT, **verdict)) == faults


def test_a_run_adds_its_rows_to_earlier_rows(tmp_path: Path) -> None:
    """Rows are in the order of the faults. A row that is played again replaces the earlier row."""
    kept, page = tmp_path / "kept" / "faults.json", tmp_path / "page.md"
    page.write_text("before\n\n<!-- written by make faults: begin -->\nold\n<!-- end -->\n\nafter\n")
    for name, sent in (("redis-killed", 5), ("postgres-frozen", 7), ("redis-killed", 9)):
        seen = replace(WELL, said={**WELL.said, "ingest": "degraded (redis)"})
        line = table.Line(ROWS[name], seen, EXACT, sent, sent, sent - 1, 1, ())
        table.save_line(kept, line, about="here")
    table.update_page(page, kept)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "16 events were sent, 14 counted, 2 became dead letters. here." in text
    assert [line.split("`")[1] for line in text.splitlines() if "`" in line] == ["postgres-frozen", "redis-killed"]
    assert "\nold\n" not in text


def test_a_page_keeps_rows_of_faults_that_were_not_played(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- written by make faults: begin --><!-- end -->")
    for name, sent, about in (("rebalanced", 5, "here"), ("poisoned", 7, "there"), ("poisoned", 1_200, "there")):
        kept = tmp_path / f"{name}-{sent}.json"
        table.save_line(kept, table.Line(ROWS[name], WELL, EXACT, sent, sent, sent, 1, ()), about=about)
        table.update_page(page, kept)
    text = page.read_text()
    assert "1,205 events were sent, 1,205 counted, 2 became dead letters. here; there.\n" in text
    assert [line.split("`")[1] for line in text.splitlines() if "`" in line] == ["rebalanced", "poisoned"]


@pytest.mark.parametrize(
    ("rows", "minutes", "expected"),
    [
        ("", 0.0, list(ROWS)),
        ("redis-frozen,rebalanced", 0.0, ["redis-frozen", "rebalanced"]),
        ("redis-frozen", 1e-9, ["redis-frozen"]),
    ],
)
def test_the_named_rows_are_played_and_by_default_all_rows(rows: str, minutes: float, expected: list[str]) -> None:
    arguments = Namespace(rows=rows, minutes=minutes, seconds=7.0, seed=41)
    assert [(row.name, seconds) for row, seconds in faults._plan(arguments, Console(quiet=True))] == [
        (name, 7.0) for name in expected
    ]


def test_random_rows_follow_the_named_rows() -> None:
    """One seed draws the same rows. A random row lasts five seconds at least."""

    def first(count: int, rows: str) -> list[tuple[str, float]]:
        arguments = Namespace(rows=rows, minutes=1.0, seconds=7.0, seed=41)
        plan = islice(faults._plan(arguments, Console(quiet=True)), count)
        return [(row.name, seconds) for row, seconds in plan]

    drawn = first(20, "")
    assert first(21, "poisoned") == [("poisoned", 7.0), *drawn]
    assert len({name for name, _ in drawn}) > 5
    assert all(5.0 <= seconds <= 7.0 for _, seconds in drawn)
