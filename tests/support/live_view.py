"""A client of live changes, which builds rows from messages, and the API process that it listens to."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psycopg
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from bench import Bench
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, ApiKey, ApiKeys, PipelineConfig

BASE = 1_700_000_000_000 // 60_000 * 60_000


def config(name: str, *, auth: bool = False, **spec: Any) -> PipelineConfig:
    """Return a pipeline with tumbling windows by country and by device, and hopping windows without groups."""
    parsed = PipelineSpec.model_validate(
        {
            "source": {
                "topic": {"partitions": 2},
                "fields": [
                    {"name": "ts", "type": "timestamp", "required": True},
                    {"name": "country", "type": "string"},
                    {"name": "device", "type": "integer"},
                    {"name": "amount", "type": "number"},
                ],
                "eventTime": {"field": "ts", "idleTimeout": "2s", "maxDisorder": "1s"},
            },
            "aggregations": [
                {
                    "name": "by_country",
                    "groupBy": ["country"],
                    "window": {"type": "tumbling", "size": "1m"},
                    "metrics": [
                        {"name": "orders", "function": "count"},
                        {"name": "revenue", "function": "sum", "field": "amount"},
                        {"name": "mean", "function": "avg", "field": "amount"},
                        {"name": "common", "function": "topk", "field": "device", "k": 3},
                    ],
                },
                {
                    "name": "by_device",
                    "groupBy": ["device"],
                    "window": {"type": "tumbling", "size": "1m"},
                    "metrics": [{"name": "orders", "function": "count"}],
                },
                {
                    "name": "all",
                    "window": {"type": "hopping", "size": "3m", "hop": "1m"},
                    "metrics": [
                        {"name": "orders", "function": "count"},
                        {"name": "common", "function": "topk", "field": "country"},
                    ],
                },
            ],
            "processor": {"flushInterval": "100ms"},
            "auth": {"required": auth},
            "api": {"cacheTtl": "0s"},
            **spec,
        }
    )
    return PipelineConfig(
        namespace="live",
        name=name,
        generation=1,
        spec=parsed,
        aggregations=tuple(AggregationRef(name=a.name) for a in parsed.aggregations),
    )


def orders(number: int, *, at: int = 0, countries: str = "NO SE DK", devices: int = 5) -> list[bytes]:
    """Return events from `BASE + at` on, one in each millisecond."""
    names = countries.split()
    return [
        json.dumps(
            {"ts": BASE + at + i, "country": names[i % len(names)], "device": i % devices, "amount": float(i % 7)}
        ).encode()
        for i in range(number)
    ]


class View:
    """The rows that a client has after messages, by the rules of the API's documentation."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[tuple[Any, ...], tuple[int, dict[str, Any]]]] = {}
        self.groups: dict[str, list[str]] = {}
        self.closed_until: dict[str, str | None] = {}
        self.kinds: list[str] = []
        self.resume = ""
        self.degraded = False
        self.errors: list[str] = []

    def take(self, message: dict[str, Any]) -> None:
        """Apply a message."""
        kind, name = message["type"], message.get("aggregation", "")
        self.kinds.append(kind)
        if kind == "hello":
            for aggregation in message["aggregations"]:
                self.groups[aggregation["name"]] = [d["name"] for d in aggregation["dimensions"]]
                self.rows[aggregation["name"]] = {}
        elif kind == "reset":
            self.rows[name] = {}
        elif kind in ("snapshot", "upsert"):
            for row in message["rows"]:
                key = (*(row[group] for group in self.groups[name]), row["window_start"])
                if self.rows[name].get(key, (0, {}))[0] <= message["rev"]:
                    self.rows[name][key] = (message["rev"], row)
        elif kind == "progress":
            self.closed_until, self.resume = message["closed_until"], message["resume"]
            self.degraded = message["degraded"]
        elif kind == "error":
            self.errors.append(message["code"])

    def table(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of an aggregation, sorted."""
        until = self.closed_until.get(name)
        rows = [row for _, row in self.rows[name].values()]
        closed = [{**row, "closed": until is not None and row["window_end"] <= until} for row in rows]
        return in_order(closed)

    def count(self, name: str = "by_country") -> int:
        """Return the number of events that the rows count."""
        return sum(row["orders"] for _, row in self.rows.get(name, {}).values())


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows sorted by their JSON, to compare them."""
    return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))


class Api:
    """The API process of a bench."""

    def __init__(self, bench: Bench, **environment: Any) -> None:
        self.bench = bench
        self.process = bench.start(module="tidemill_api", **environment)
        self.port = bench.ports[-1]
        bench.eventually(lambda: self._status("/readyz") == 200, what="the API is ready")

    @property
    def path(self) -> str:
        return f"/v1/pipelines/{self.bench.config.name}/live"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.path}"

    def _status(self, path: str) -> int:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=10).status_code
        except httpx.TransportError:
            return 0

    @contextmanager
    def listening(self, query: str = "", **options: Any) -> Iterator[ClientConnection]:
        """Connect a WebSocket."""
        with connect(f"ws://127.0.0.1:{self.port}{self.path}{query}", **options) as live:
            yield live

    def windows(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of an aggregation that REST answers, sorted."""
        url = f"http://127.0.0.1:{self.port}/v1/pipelines/{self.bench.config.name}/aggregates/{name}"
        answer = httpx.get(url, params={"limit": 10_000}, timeout=20)
        assert answer.status_code == 200, answer.text
        return in_order(answer.json()["data"])

    def log(self) -> str:
        """Return the log of the process."""
        name = f"tidemill_api-{self.bench.processes.index(self.process)}.log"
        return str((self.bench.folder / name).read_text())


class Shop(Api):
    """An API that tests share. Each test uses event times after those of the tests before."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.taken = self.sent = 0

    def times(self) -> int:
        """Return an `at` for `orders` that no test has used."""
        self.taken += 600_000
        return self.taken

    def produce(self, events: list[bytes]) -> None:
        """Produce events and wait until they are counted."""
        self.sent += len(events)
        self.bench.produce(events)
        self.bench.await_consumed(self.sent)


def follow(live: ClientConnection, view: View, until: Callable[[], Any], *, seconds: float = 90.0) -> None:
    """Apply messages to a view until a condition is true."""
    deadline = time.monotonic() + seconds
    while not until():
        left = deadline - time.monotonic()
        if left <= 0:
            pytest.fail(f"not true within {seconds} s; {view.count()} events seen, last messages: {view.kinds[-20:]}")
        try:
            view.take(json.loads(live.recv(timeout=left)))
        except TimeoutError:
            continue


def same_as_rest(api: Api, view: View, name: str) -> Callable[[], bool]:
    """Return a condition that is true if a view has the rows that REST answers."""
    return lambda: view.rows.get(name) is not None and view.table(name) == api.windows(name)


def events(response: httpx.Response) -> Iterator[tuple[dict[str, Any], str]]:
    """Return the messages of an event stream with their ids."""
    data, identity = "", ""
    for line in response.iter_lines():
        field, _, value = line.partition(": ")
        if field == "data":
            data = value
        elif field == "id":
            identity = value
        elif not line and data:
            yield json.loads(data), identity
            data, identity = "", ""


def execute(bench: Bench, text: str) -> None:
    """Run a statement as the administrator."""
    at = bench.servers.postgres
    with psycopg.connect(
        host=at.host, port=at.port, dbname=at.database, user=at.user, password=at.password
    ) as connection:
        connection.execute(text.replace("{s}", bench.schema))


def key_file(bench: Bench, *scopes: str) -> str:
    """Write a file with one API key for the pipeline, and return the key."""
    keys = ApiKeys(keys=(ApiKey(id="k1", sha256=hashlib.sha256(b"secret").hexdigest(), scopes=scopes),))
    (bench.folder / "secrets" / bench.config.name / "api-keys.json").write_text(keys.model_dump_json())
    return "tm_k1_secret"


def closing(live: ClientConnection) -> tuple[int, list[str]]:
    """Wait until a connection is closed; return its close code, and the codes of the errors before."""
    codes = []
    while True:
        try:
            message = json.loads(live.recv(timeout=15))
            if message["type"] == "error":
                codes.append(message["code"])
        except ConnectionClosed as closed:
            return (closed.rcvd.code if closed.rcvd else 0), codes
