"""Tests of live changes over WebSockets and server-sent events.

Real servers: the session's Kafka, Postgres and Redis, with processors and API processes.
"""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import redis
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from bench import MakeBench
from live_view import Api, Shop, View, closing, config, events, execute, follow, key_file, orders, same_as_rest
from tidemill_api.live.progress import Position, read_token, write_token
from tidemill_contract import names

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def shop(make_shared_bench: MakeBench) -> Shop:
    """Return one processor and one API, which all tests share that break nothing."""
    bench = make_shared_bench(config("live-shop"))
    bench.start()
    return Shop(bench)


def test_a_snapshot_and_later_changes_equal_the_answers_of_rest(shop: Shop) -> None:
    """This holds for tumbling and hopping windows, open and closed, from before and after the connection."""
    at, view = shop.times(), View()
    shop.produce(orders(300, at=at))
    with shop.listening() as live:
        follow(live, view, lambda: view.resume)
        assert view.kinds[:4] == ["hello", "snapshot", "snapshot", "snapshot"]
        assert view.count() == shop.sent
        for step in range(1, 6):
            shop.produce(orders(200, at=at + step * 40_000))
        follow(live, view, lambda: view.count() == shop.sent)
        for name in ("by_country", "by_device", "all"):
            follow(live, view, same_as_rest(shop, view, name))
    assert "reset" not in view.kinds
    assert not view.degraded
    assert any(row["closed"] for row in view.table("by_country"))
    assert view.errors == []


def test_a_client_that_resumes_misses_no_change(shop: Shop) -> None:
    """A client that reconnects with its token gets the changes since then, and no snapshot."""
    at, view = shop.times(), View()
    shop.produce(orders(100, at=at))
    with shop.listening() as live:
        follow(live, view, lambda: view.count() == shop.sent and view.kinds[-1] == "progress")
    for step in range(1, 4):
        shop.produce(orders(100, at=at + step * 30_000, countries="NO FI"))
    kinds_before = len(view.kinds)
    with shop.listening(f"?resume={view.resume}") as live:
        assert json.loads(live.recv())["type"] == "hello"
        follow(live, view, lambda: view.count() == shop.sent)
        shop.produce(orders(50, at=at + 100_000))
        follow(live, view, lambda: view.count() == shop.sent)
        for name in ("by_country", "by_device", "all"):
            follow(live, view, same_as_rest(shop, view, name))
    assert {"snapshot", "reset"}.isdisjoint(view.kinds[kinds_before:])


def test_a_client_with_an_invalid_token_gets_a_reset_and_a_snapshot(shop: Shop) -> None:
    """A token is invalid if it is malformed, of other tables, or of revisions that the tables do not have."""
    shop.produce(orders(30, at=shop.times()))
    view = View()
    with shop.listening() as live:
        follow(live, view, lambda: view.resume)
    positions = read_token(view.resume)
    recreated = write_token({name: Position(old.table_oid + 1, old.rev) for name, old in positions.items()})
    ahead = write_token({name: Position(old.table_oid, old.rev + 1_000) for name, old in positions.items()})
    for token in ("nonsense", recreated, ahead):
        other = View()
        with shop.listening(f"?resume={token}&aggregations=by_country") as live:
            follow(live, other, lambda: other.resume)  # noqa: B023
        assert other.kinds[:3] == ["hello", "reset", "snapshot"]
        assert other.count() == shop.sent


def test_a_slow_reader_gets_the_newest_rows_in_fewer_messages(make_bench: MakeBench) -> None:
    """It skips intermediate states of a window, and has the same rows in the end."""
    groups, rounds, every = 600, 36, 3
    bench = make_bench(config("live-slow"))
    bench.start()
    api = Api(bench)
    names = " ".join(f"{i:03d}{'x' * 900}" for i in range(groups))
    bench.produce(orders(groups, countries=names))
    bench.await_consumed(groups)
    view, watching = View(), View()
    # The kernel buffers little, so the API itself has to hold messages back.
    with small_socket(api.port) as sock, api.listening("?aggregations=by_country", sock=sock, max_queue=1) as slow:
        follow(slow, view, lambda: view.resume)
        with api.listening("?aggregations=by_country") as quick:
            follow(quick, watching, lambda: watching.resume)
            for number in range(1, rounds + 1):
                bench.produce(orders(groups, countries=names))
                total = groups * (number + 1)
                follow(quick, watching, lambda: watching.count() == total)  # noqa: B023
                if number % every == 0:
                    # The API disconnects a client that reads nothing. This client reads slowly.
                    upserts = view.kinds.count("upsert")
                    follow(slow, view, lambda: view.kinds.count("upsert") > upserts)  # noqa: B023
        follow(slow, view, lambda: view.count() == groups * (rounds + 1))
        follow(slow, view, same_as_rest(api, view, "by_country"))
    assert view.kinds.count("upsert") < watching.kinds.count("upsert") / 2
    assert view.kinds.count("reset") == 0


@contextmanager
def small_socket(port: int) -> Iterator[socket.socket]:
    """Yield a connected socket with a small receive buffer."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", port))
        yield sock


def test_an_outage_of_redis_loses_no_change(make_bench: MakeBench, own_servers: Any) -> None:
    """During the outage, the API polls Postgres for changes and marks them as degraded."""
    servers = own_servers(needs=("redis",))
    quick = {"TIDEMILL_RESILIENCE__BREAKERS__REDIS__OPEN_SECONDS": "1"}
    bench = make_bench(config("live-redis"), TIDEMILL_REDIS_URL=servers.redis, **quick)
    bench.start()
    api = Api(bench)
    view = View()
    with api.listening() as live:
        bench.produce(orders(100))
        follow(live, view, lambda: view.count() == 100 and not view.degraded)
        servers.handles["redis"].kill()
        bench.produce(orders(100, at=30_000))
        follow(live, view, lambda: view.count() == 200 and view.degraded)
        late = View()
        with api.listening() as another:
            follow(another, late, lambda: late.resume)
        assert late.degraded
        assert late.count() == 200
        servers.handles["redis"].start()
        follow(live, view, lambda: not view.degraded, seconds=60)
        bench.produce(orders(100, at=60_000))
        follow(live, view, lambda: view.count() == 300)
        for name in ("by_country", "by_device", "all"):
            follow(live, view, same_as_rest(api, view, name))
    assert "reset" not in view.kinds
    assert "live changes could not be read" not in api.log()


def test_changes_that_a_killed_processor_did_not_publish_reach_clients(make_bench: MakeBench) -> None:
    """The API reads revisions from the tables that were committed and never published."""
    bench = make_bench(config("live-killed"))
    processor = bench.start()
    api = Api(bench)
    view = View()
    with api.listening() as live:
        bench.produce(orders(60))
        follow(live, view, lambda: view.count() == 60)
        # The test commits a row and a revision as a batch would, and publishes nothing.
        processor.send_signal(signal.SIGKILL)
        processor.wait()
        execute(bench, "UPDATE {s}._aggregations SET rev = rev + 1 WHERE name = 'by_country'")
        execute(
            bench,
            "UPDATE {s}.by_country_v1 SET _count = _count + 1, _rev = (SELECT rev FROM {s}._aggregations"
            " WHERE name = 'by_country') WHERE country = 'NO'",
        )
        follow(live, view, lambda: view.count() == 61)
        follow(live, view, same_as_rest(api, view, "by_country"))
    assert "reset" not in view.kinds


def test_a_client_needs_a_key_in_a_header_or_in_its_first_message(make_bench: MakeBench) -> None:
    """Without a valid key with the scope `query:read`, the API closes the connection with a code."""
    bench = make_bench(config("live-auth", auth=True))
    api = Api(bench)
    key = key_file(bench, "query:read")
    with api.listening(additional_headers={"Authorization": f"Bearer {key}"}) as live:
        assert json.loads(live.recv())["type"] == "hello"
    with api.listening() as live:
        live.send(json.dumps({"type": "auth", "token": key}))
        assert json.loads(live.recv())["type"] == "hello"
    cases = [
        ("a wrong secret in the header", {"Authorization": "Bearer tm_k1_wrong"}, None),
        ("a wrong secret in a message", {}, json.dumps({"type": "auth", "token": "tm_k1_wrong"})),
        ("a message that is no key", {}, json.dumps({"type": "subscribe"})),
        ("a message that is no JSON", {}, "hello"),
        ("no message at all", {}, None),
    ]
    for why, headers, message in cases:
        with api.listening(additional_headers=headers) as live:
            if message:
                live.send(message)
            assert closing(live) == (4401, ["unauthorized"]), why
    assert httpx.get(api.url).status_code == 401
    key_file(bench, "events:append")
    headers = {"authorization": f"Bearer {key}"}
    bench.eventually(lambda: httpx.get(api.url, headers=headers).status_code == 403, what="the new scopes apply")
    with api.listening(additional_headers={"Authorization": f"Bearer {key}"}) as live:
        assert closing(live) == (4403, ["forbidden"])


def test_a_revoked_key_ends_the_open_connection(make_bench: MakeBench) -> None:
    bench = make_bench(config("live-revoked", auth=True))
    api = Api(bench)
    key = key_file(bench, "query:read")
    with api.listening(additional_headers={"Authorization": f"Bearer {key}"}) as live:
        assert json.loads(live.recv())["type"] == "hello"
        key_file(bench)
        assert closing(live) == (4403, ["forbidden"])


def test_pages_of_other_origins_are_refused(make_bench: MakeBench) -> None:
    """Pages of the same host and of listed origins may connect."""
    bench = make_bench(config("live-origin"))
    api = Api(bench, TIDEMILL_API_CORS_ORIGINS="https://good.example, https://other.example")
    for origin in (f"http://127.0.0.1:{api.port}", "https://good.example"):
        with api.listening(origin=origin) as live:
            assert json.loads(live.recv())["type"] == "hello"
    for origin in ("https://evil.example", "null"):
        with pytest.raises(InvalidStatus) as refused, api.listening(origin=origin):
            pass
        assert refused.value.response.status_code == 403


def test_server_sent_events_resume_after_the_last_event_id(shop: Shop) -> None:
    """Server-sent events have the same messages as WebSockets."""
    at = shop.times()
    shop.produce(orders(90, at=at))
    view, last = View(), ""
    with httpx.stream("GET", shop.url, timeout=30) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        for message, identity in events(response):
            view.take(message)
            last = identity or last
            if last:
                break
    assert view.kinds == ["hello", "snapshot", "snapshot", "snapshot", "progress"]
    assert last == view.resume
    shop.produce(orders(60, at=at + 20_000))
    again = View()
    again.rows, again.groups = view.rows, view.groups
    with httpx.stream("GET", shop.url, headers={"Last-Event-ID": last}, timeout=30) as response:
        for message, _ in events(response):
            if message["type"] != "hello":
                again.take(message)
            if again.count() == shop.sent and again.kinds[-1] == "progress":
                break
    assert {"snapshot", "reset"}.isdisjoint(again.kinds)
    in_both = [{**row, "closed": True} for row in again.table("by_country")]
    assert in_both == [{**row, "closed": True} for row in shop.windows("by_country")]


def test_a_filter_selects_rows_of_the_aggregations_with_its_column(shop: Shop) -> None:
    """The snapshot and later changes have only rows that match."""
    at, view = shop.times(), View()
    shop.produce(orders(30, at=at))
    with shop.listening("?aggregations=by_country,by_device&country__in=NO,SE&device=3") as live:
        follow(live, view, lambda: view.resume)
        before = view.count()
        shop.produce(orders(30, at=at + 70_000))
        follow(live, view, lambda: view.count() == before + 20)
    assert {row["country"] for row in view.table("by_country")} == {"NO", "SE"}
    assert {row["device"] for row in view.table("by_device")} == {3}
    assert set(view.rows) == {"by_country", "by_device"}
    with shop.listening("?colour=red") as live:
        assert closing(live) == (4400, ["unknown_parameter"])
    with shop.listening("?aggregations=by_colour") as live:
        assert closing(live) == (4400, ["invalid_parameter"])
    assert httpx.get(f"{shop.url}?device=x").status_code == 400


def test_a_connection_to_an_unknown_or_removed_pipeline_is_closed(make_bench: MakeBench) -> None:
    """The API closes open connections when a pipeline is removed."""
    bench = make_bench(config("live-gone"))
    bench.start()
    api = Api(bench)
    with connect(f"ws://127.0.0.1:{api.port}/v1/pipelines/nobody/live") as live:
        assert closing(live) == (4404, ["pipeline_not_found"])
    assert httpx.get(api.url.replace("live-gone", "nobody")).status_code == 404
    with api.listening() as live:
        assert json.loads(live.recv())["type"] == "hello"
        live.send("what?")
        view = View()
        follow(live, view, lambda: view.errors)
        assert view.errors == ["unexpected_message"]
        (bench.folder / "live-gone.json").unlink()
        assert closing(live) == (4404, ["pipeline_removed"])


def test_a_change_of_an_aggregation_ends_connections(make_bench: MakeBench) -> None:
    """Clients reconnect to read the new columns. Other changes of the spec leave connections open."""
    bench = make_bench(config("live-changed"))
    bench.start()
    api = Api(bench)
    path = bench.folder / "live-changed.json"
    with api.listening() as live:
        assert json.loads(live.recv())["type"] == "hello"
        document = json.loads(path.read_text())
        document["spec"]["processor"]["replicas"] = 2
        path.write_text(json.dumps(document | {"generation": 2}))
        bench.produce(orders(30))
        view = View()
        view.rows, view.groups = {"by_country": {}, "by_device": {}, "all": {}}, {
            "by_country": ["country"], "by_device": ["device"], "all": [],
        }  # fmt: skip
        follow(live, view, lambda: view.count() == 30)
        document["spec"]["aggregations"][0]["metrics"].pop()
        path.write_text(json.dumps(document | {"generation": 3}))
        assert closing(live) == (1012, ["pipeline_changed"])


def test_an_api_that_stops_closes_all_connections(make_bench: MakeBench) -> None:
    """SIGTERM closes WebSockets with 1001 and ends event streams. A client that does not read delays nothing."""
    bench = make_bench(config("live-stop"))
    api = Api(bench)
    ended: list[str] = []

    def read_events() -> None:
        with httpx.stream("GET", api.url, timeout=30) as response:
            for message, _ in events(response):
                ended.append(message["type"])

    reader = threading.Thread(target=read_events)
    reader.start()
    with api.listening() as live, api.listening(max_queue=1) as deaf:
        bench.eventually(lambda: "progress" in ended, what="the event stream has a progress message")
        api.process.terminate()
        assert closing(live) == (1001, ["going_away"])
        assert api.process.wait(15) == 0
        assert deaf.protocol is not None
    reader.join(10)
    assert not reader.is_alive()
    assert ended[-1] == "error"


def test_an_aggregation_that_cannot_be_read_is_left_out(make_bench: MakeBench) -> None:
    """Clients get one error, and the rows of other aggregations. They get its rows as soon as it can be read."""
    aggregations = [
        {"name": name, "groupBy": ["country"], "window": {"type": "tumbling", "size": "1m"}, "metrics": metrics}
        for name, metrics in (
            ("by_country", [{"name": "orders", "function": "count"}]),
            ("seen", [{"name": "latest", "function": "max", "field": "ts"}]),
        )
    ]
    bench = make_bench(config("live-left-out", aggregations=aggregations))
    bench.start()
    bench.produce(orders(30))
    bench.await_consumed(30)
    execute(bench, "UPDATE {s}.seen_v1 SET _max_ts = 'infinity' WHERE country = 'NO'")
    api, view = Api(bench), View()
    with api.listening() as live:
        follow(live, view, lambda: view.count() == 30 and view.errors)
        # The processor publishes only while it knows of a listener. Until then, the API reads the tables.
        stream = names.live_stream(bench.config.namespace, bench.config.name)
        with redis.Redis.from_url(bench.servers.redis) as client:
            bench.eventually(lambda: client.exists(stream), what="the processor knows of a listener")
        bench.produce(orders(30, at=1_000))
        follow(live, view, lambda: view.count() == 60)
        bench.eventually(lambda: "seen: " in bench.health(0)["live"], what="the processor reports the error too")
        assert bench.health(0)["status"] == "degraded"
        assert read_token(view.resume).keys() == {"by_country"}
        execute(bench, "UPDATE {s}.seen_v1 SET _max_ts = now() WHERE country = 'NO'")
        follow(live, view, lambda: view.rows.get("seen"))
        follow(live, view, lambda: read_token(view.resume).keys() == {"by_country", "seen"})
        assert view.errors == ["value_refused"]


def test_metrics_count_open_and_dropped_connections(shop: Shop) -> None:
    """A connection that the API ended is counted with its reason."""

    def await_figure(text: str) -> None:
        shop.bench.eventually(lambda: text in shop.bench.metrics(), what=text)

    with shop.listening():
        await_figure('tidemill_live_connections{transport="websocket"} 1.0')
        # The test does not read the stream. After some time, the API would disconnect such a client.
        with httpx.stream("GET", shop.url, timeout=30):
            await_figure('tidemill_live_connections{transport="sse"} 1.0')
    await_figure('tidemill_live_connections{transport="websocket"} 0.0')
    await_figure('tidemill_live_connections{transport="sse"} 0.0')
    with shop.listening("?day=today") as live:
        closing(live)
    await_figure('tidemill_live_dropped_total{reason="unknown_parameter"}')
