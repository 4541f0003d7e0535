"""The faults by name: how each begins and ends, which components must report it, and what is expected."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from demo.chaos import reset_group
from demo.runtime import until
from faults.bench import BROKERS, LEADER, Bench

Act = Callable[[Bench], None]
_CHANGE_SECONDS = 60.0
_SLOW_SECONDS = 2.0


@dataclass(frozen=True)
class Row:
    """One fault.

    Attributes:
        name: The name of the row.
        expected: The expectation in words, for the table.
        begin_fault, end_fault: Functions that begin and end the fault.
        reports: By component (or `ready`), the text that a report must contain during the fault. If it is empty, no
            report has to mention the fault.
        must_count: Whether events must be counted during the fault. If it is None, they may be counted or not.
        restarts: The components that may restart.
        stopped_by_user: Whether a user stops the counting, so that components must not report a fault.
        without_events: Whether no events are sent during the fault.
        seconds: The duration of the fault. If it is None, the command line determines the duration.
        small_disk: Whether Postgres' data are on a small disk. Rows with a small disk get separate servers.
    """

    name: str
    expected: str
    begin_fault: Act
    end_fault: Act
    reports: Mapping[str, str] = field(default_factory=dict)
    must_count: bool | None = None
    restarts: Sequence[str] = ()
    stopped_by_user: bool = False
    without_events: bool = False
    seconds: float | None = None
    small_disk: bool = False


def _nothing(_: Bench) -> None:
    """Do nothing: the fault ends by itself."""


def _kill(*servers: str) -> Act:
    def act(bench: Bench) -> None:
        for server in bench.resolve_names(servers):
            bench.servers[server].kill()

    return act


def _start(*servers: str) -> Act:
    def act(bench: Bench) -> None:
        for server in bench.resolve_names(servers):
            bench.servers[server].spawn()
        for server in bench.resolve_names(servers):
            bench.servers[server].wait_ready()

    return act


def _freeze(*servers: str) -> Act:
    def act(bench: Bench) -> None:
        for server in bench.resolve_names(servers):
            bench.freeze(server)

    return act


def _wake(*servers: str) -> Act:
    def act(bench: Bench) -> None:
        for server in bench.resolve_names(servers):
            bench.wake(server)

    return act


def _swallow(*servers: str, on: bool) -> Act:
    def act(bench: Bench) -> None:
        for server in bench.resolve_names(servers):
            bench.proxies[server].swallows = on

    return act


def _delay(*servers: str, seconds: float) -> Act:
    def act(bench: Bench) -> None:
        for server in bench.resolve_names(servers):
            bench.proxies[server].delay_seconds = seconds

    return act


def _signal(component: str, number: int) -> Act:
    def act(bench: Bench) -> None:
        with suppress(ProcessLookupError):
            os.kill(bench.pid(component), number)

    return act


def _bounce(bench: Bench) -> None:
    """Kill and start the leading broker five times."""
    for _ in range(5):
        server = bench.servers[bench.leader]
        server.kill()
        time.sleep(1.0)
        server.start()


def _replicas(count: int) -> Act:
    def act(bench: Bench) -> None:
        bench.runtime.edit(lambda spec: spec["processor"].update(replicas=count))
        until(lambda: len(bench.runtime.processors()) == count, seconds=_CHANGE_SECONDS, what=f"{count} processors run")

    return act


def _suspend(bench: Bench) -> None:
    """Stop all processors, and set the consumer group's offsets back to the beginning."""
    bench.runtime.edit(lambda spec: spec.update(suspend=True))
    until(lambda: not bench.runtime.processors(), seconds=_CHANGE_SECONDS, what="no processor runs")
    until(lambda: reset_group(bench.runtime), seconds=_CHANGE_SECONDS, what="the group's offsets are reset")


def _resume(bench: Bench) -> None:
    bench.runtime.edit(lambda spec: spec.update(suspend=False))
    until(bench.runtime.processors, seconds=_CHANGE_SECONDS, what="a processor runs")


_FAR = int(time.time() * 1000) + 10 * 365 * 86_400_000
POISON: Sequence[tuple[bytes | None, bytes | None]] = (
    (b"k", b"{"),
    (b"k", b"[1,2]"),
    (b"k", b"\xff\xfe\x00"),
    (b"k", b'{"id":1,"k":"k1"}'),
    (b"k", b'{"id":"x","k":"k1","ts":1700000000000}'),
    (b"k", b'{"id":9223372036854775808,"k":"k1","ts":1700000000000}'),
    (b"k", b'{"id":1,"k":"a\\u0000b","ts":"tomorrow"}'),
    (b"k", b'{"id":null,"k":"\\ud800","ts":1700000000000}'),
    (b"k", json.dumps({"id": None, "k": "x" * 300_000, "ts": 1}).encode()),
    (b"k", b'{"id":1,"k":"far","ts":%d}' % _FAR),
    (None, b'{"id":1.5,"k":"k1","ts":1700000000000}'),
    (b"x" * 3_000, b'{"id":true,"k":"k1","ts":1700000000000}'),
)
"""Keys and values of records that cannot be counted."""


def _poison(bench: Bench) -> None:
    producer = Producer({"bootstrap.servers": bench.runtime.kafka, "enable.idempotence": True, "log_level": 0})
    for _ in range(20):
        for key, value in POISON:
            producer.produce(bench.topic, value, key=key)
    if producer.flush(30):
        raise RuntimeError("Kafka did not accept all invalid records within 30 s")


def _table(bench: Bench) -> str:
    return str(bench.sql("SELECT table_name FROM {schema}._aggregations")[0][0])


def _take_window_table(bench: Bench) -> None:
    bench.sql(f'ALTER TABLE {{schema}}."{_table(bench)}" RENAME TO "taken"')


def _give_window_table(bench: Bench) -> None:
    bench.sql(f'ALTER TABLE {{schema}}."taken" RENAME TO "{_table(bench)}"')


def _sql(statement: str) -> Act:
    def act(bench: Bench) -> None:
        bench.sql(statement)

    return act


def _column(*, renamed: bool) -> Act:
    def act(bench: Bench) -> None:
        rows = bench.sql(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = %s AND table_name = %s"
            " AND column_name LIKE %s ORDER BY ordinal_position DESC LIMIT 1",
            bench.schema,
            _table(bench),
            "taken%" if renamed else "%",
        )
        name = str(rows[0][0])
        new = f"taken_{name}" if not renamed else name.removeprefix("taken_")
        bench.sql(f'ALTER TABLE {{schema}}."{_table(bench)}" RENAME COLUMN "{name}" TO "{new}"')

    return act


def _delete_topic(bench: Bench) -> None:
    client = AdminClient({"bootstrap.servers": bench.runtime.kafka})
    client.delete_topics([bench.topic], request_timeout=20)[bench.topic].result(25)


def _recreate_topic(bench: Bench) -> None:
    bench.annotate(recreate_topics="true")
    client = AdminClient({"bootstrap.servers": bench.runtime.kafka})
    until(
        lambda: bench.topic in client.list_topics(timeout=10).topics, seconds=_CHANGE_SECONDS, what="the topic exists"
    )
    bench.annotate(recreate_topics="")
    bench.checker.restart()
    bench.bulk.renew()


_MAJORITY = ("kafka-2", "kafka-3")
_POSTGRES = {"processor": "postgres", "api": "postgres", "ready": "False"}
_REDIS = {"ingest": "redis", "api": "redis"}
_KAFKA = {"processor": "kafka", "ingest": "kafka", "ready": "False"}
_LOSS = {"ready": "DataLoss"}
_BY_DEADLINES = "the same as when it is killed, because clients have deadlines"
_SERVED = "the other two brokers serve; degraded, Ready stays true"
_STALLED = "nothing is counted; every service that needs the server reports the fault"
_DEGRADED = "degraded; all events are counted"
_WAITS = "partitions and groups that it leads wait, because controllers still reach it; Ready is false if it leads all"
_NOTHING_TAKEN = "ingest answers 503; no acknowledged event is lost"
_ONCE = "no event counts twice"
_RECREATED = "DataLoss; created again on request"
_NAMED_LOSS = "DataLoss names what is missing; counting continues when it is restored"


def _process(component: str, expected: str, **named: Any) -> Sequence[Row]:
    return (
        Row(
            f"{component}-killed", expected, _signal(component, signal.SIGKILL), _nothing, restarts=[component], **named
        ),
    )


def _server(
    name: str, servers: Sequence[str], expected: str, *, slow: str, hole: str = _BY_DEADLINES, **named: Any
) -> Sequence[Row]:
    """Return the faults of one server: killed, frozen, behind a black hole, slow."""
    swallowed = named if hole == _BY_DEADLINES else {}
    return (
        Row(f"{name}-killed", expected, _kill(*servers), _start(*servers), **named),
        Row(f"{name}-frozen", _BY_DEADLINES, _freeze(*servers), _wake(*servers), **named),
        Row(f"{name}-blackholed", hole, _swallow(*servers, on=True), _swallow(*servers, on=False), **swallowed),
        Row(f"{name}-slow", slow, _delay(*servers, seconds=_SLOW_SECONDS), _delay(*servers, seconds=0.0)),
    )


ROWS: Mapping[str, Row] = {
    row.name: row
    for row in (
        *_process("processor", f"it is restarted; {_ONCE}", must_count=True),
        Row(
            "processor-frozen",
            "its health does not answer and Ready is false; its open batch is rolled back",
            _signal("processor", signal.SIGSTOP),
            _signal("processor", signal.SIGCONT),
            reports={"processor": "silent", "ready": "False"},
        ),
        *_server("postgres", ["postgres"], _STALLED, slow="slower, or Ready is false; no loss", reports=_POSTGRES),
        *_server("broker", [LEADER], _SERVED, slow="slower; no loss", hole=_WAITS, must_count=True),
        *_server("redis", ["redis"], _DEGRADED, slow=_DEGRADED, reports=_REDIS, must_count=True),
        *_server("majority", _MAJORITY, _NOTHING_TAKEN, slow="slower", hole=_WAITS, reports=_KAFKA),
        *_server("kafka", BROKERS, _NOTHING_TAKEN, slow="slower", reports=_KAFKA),
        *_process("ingest", "it is restarted", must_count=True),
        *_process("api", "it is restarted", must_count=True),
        Row("broker-bounced", f"five restarts; {_SERVED}", _bounce, _nothing, must_count=True, seconds=1.0),
        Row("rebalanced", f"1 → 3 → 1 processors; {_ONCE}", _replicas(3), _replicas(1), must_count=True, seconds=10.0),
        Row(
            "group-reset", "no effect: positions are in Postgres", _suspend, _resume, stopped_by_user=True, seconds=1.0
        ),
        Row("poisoned", "dead letters; other events are counted", _poison, _nothing, must_count=True, seconds=5.0),
        Row("window-table-gone", _NAMED_LOSS, _take_window_table, _give_window_table, reports=_LOSS),
        Row("column-gone", _NAMED_LOSS, _column(renamed=False), _column(renamed=True), reports=_LOSS),
        Row(
            "offsets-gone",
            _NAMED_LOSS,
            _sql('ALTER TABLE {schema}."_offsets" RENAME TO "_taken"'),
            _sql('ALTER TABLE {schema}."_taken" RENAME TO "_offsets"'),
            reports=_LOSS,
        ),
        Row("topic-deleted", _RECREATED, _delete_topic, _recreate_topic, reports=_LOSS, without_events=True),
        Row(
            "postgres-disk-full",
            "nothing is counted, and the processor reports it; counting continues when space is free again",
            Bench.fill_disk,
            Bench.empty_disk,
            reports={"processor": "postgres", "ready": "False"},
            small_disk=True,
        ),
    )
}
