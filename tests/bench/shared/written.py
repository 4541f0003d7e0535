"""The rows of the benchmark of formats: encoders, Tidemill's specs, Flink's statements and the expected windows."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import fastavro
import polars as pl
from bench_decoding import VIEW
from shared.job import recomputed

Members = dict[str, Any]
ELEMENTS = 5
"""Events in each record of the row `exploded`."""
USERS = 9_973
"""Number of users. Each user has a row in the table of the row `lookup`."""
TIERS = 100
SCALE = 3
"""Decimal places of a latency."""
_COLUMNS = "ts BIGINT, page STRING, user_id STRING, latency_ms DOUBLE, country STRING"
_READ = "SELECT t, page, latency_ms FROM events"
_KINDS = {"ts": "timestamp", "page": "string", "user_id": "string", "latency_ms": "number", "country": "string"}
_DECIMAL = {"latency_ms": {"type": "decimal", "scale": SCALE}}
_NUMBER_AVRO: Members = {"type": "double"}
_DECIMAL_AVRO: Members = {"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": SCALE}


@dataclass(frozen=True)
class Needs:
    """Addresses and ids that the pipeline and the statements of a row contain.

    Attributes:
        registry: URL of the schema registry.
        schema: Id of the row's schema.
        postgres: JDBC address of Postgres.
        login: User and password of Postgres.
    """

    registry: str = ""
    schema: int = 0
    postgres: str = ""
    login: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Written:
    """A row of the benchmark: a way to write events.

    Attributes:
        description: The difference from flat JSON.
        encode: Function that returns the records of events. Its arguments are the events and the schema's id. Events
            have the columns `ts`, `page`, `user_id`, `latency_ms` and `country`.
        fields: Additional members of fields in Tidemill's spec, by the field's name.
        spec: Additional members of Tidemill's spec: `source`, `transform`, `lookups`.
        columns: Columns of Flink's table.
        format: Options of Flink's table.
        read: Flink's SELECT of `t`, `page` and `latency_ms`.
        before: Statements that Flink runs before this SELECT.
        why_not: Reason why Flink cannot read the topic; empty if Flink can.
        schema: Schema to register, with its `schemaType`.
        group: Column of Tidemill's `groupBy`.
        elements: Number of events in a record.
        exact: Whether latencies are decimals.
        python: Whether the engines call a function in Python.
        postgres: Whether the engines read a table in Postgres.
    """

    description: str
    encode: Callable[[pl.DataFrame, int], Iterable[bytes]]
    fields: Mapping[str, Members] = field(default_factory=dict)
    spec: Callable[[Needs], Members] = lambda needs: {}
    columns: str = _COLUMNS
    format: Callable[[Needs], Mapping[str, str]] = lambda needs: {"format": "json"}
    read: str = _READ
    before: Callable[[Needs], list[str]] = lambda needs: []
    why_not: str = ""
    schema: Members | None = None
    group: str = "page"
    elements: int = 1
    exact: bool = False
    python: bool = False
    postgres: bool = False

    def pipeline(self, topic: str, needs: Needs, *, partitions: int, window_ms: int) -> Members:
        """Return the spec of Tidemill's pipeline: count, sum, min and max by group and window."""
        more = self.spec(needs)
        metrics: list[Members] = [{"name": "n", "function": "count"}]
        metrics += [
            {"name": name, "function": function, "field": "latency_ms"}
            for name, function in (("total", "sum"), ("low", "min"), ("high", "max"))
        ]
        window = {"type": "tumbling", "size": f"{window_ms}ms", "grace": "5s"}
        fields = [{"name": name, "type": kind, **self.fields.get(name, {})} for name, kind in _KINDS.items()]
        source = {
            "topic": {"name": topic, "managed": False, "partitions": partitions},
            "fields": fields,
            "eventTime": {"field": "ts", "maxDisorder": "2s"},
            **more.pop("source", {}),
        }
        by = {"name": "by_page", "groupBy": [self.group], "window": window, "metrics": metrics}
        return {"source": source, "aggregations": [by], **more}

    def statements(self, needs: Needs, environment: Mapping[str, str], *, window_ms: int, behind_ms: int) -> list[str]:
        """Return Flink's statements for the same windows. `environment` has the broker, the topics and the group."""
        kafka = {"connector": "kafka", "properties.bootstrap.servers": environment["BROKER"]}
        source = {
            **kafka, "topic": environment["IN"], "properties.group.id": environment["GROUP"],
            "scan.startup.mode": "earliest-offset", **self.format(needs),
        }  # fmt: skip
        sink = {
            **kafka, "topic": environment["OUT"], "format": "json", "json.encode.decimal-as-plain-number": "true",
            "key.format": "raw", "key.fields": "page", "properties.acks": "all",
            "sink.delivery-guarantee": "at-least-once",
        }  # fmt: skip
        value = f"DECIMAL(38, {SCALE})" if self.exact else "DOUBLE"
        time = (
            "t AS TO_TIMESTAMP_LTZ(marked(ts), 3), p AS PROCTIME(),"
            f" WATERMARK FOR t AS t - INTERVAL '{behind_ms / 1000:.3f}' SECOND"
        )
        size = f"INTERVAL '{window_ms / 1000:.3f}' SECOND"
        start = "UNIX_TIMESTAMP(DATE_FORMAT(window_start, 'yyyy-MM-dd HH:mm:ss')) * 1000"
        return [
            table("events", f"{self.columns}, {time}", source),
            table("results", f"page STRING, `start` BIGINT, n BIGINT, total {value}, low {value}, high {value}", sink),
            *self.before(needs),
            f"CREATE TEMPORARY VIEW taken AS {self.read}",
            f"INSERT INTO results SELECT page, {start}, COUNT(*), SUM(latency_ms), MIN(latency_ms), MAX(latency_ms)"
            f" FROM TABLE(TUMBLE(TABLE taken, DESCRIPTOR(t), {size})) GROUP BY page, window_start, window_end",
        ]

    def expected(self, events: pl.DataFrame, window_ms: int) -> pl.DataFrame:
        """Recompute the windows of events."""
        group = pl.col("page")
        if self.postgres:
            group = pl.lit("t") + (pl.col("user_id").str.slice(1).cast(pl.Int64) % TIERS).cast(pl.String)
        if self.elements > 1:
            first = pl.int_range(pl.len()) // self.elements * self.elements
            events = events.with_columns(pl.col("ts").gather(first))
        value = pl.col("latency_ms")
        if self.exact:
            value = (value * 10**SCALE).round().cast(pl.Int64)
        return recomputed(events.select("ts", page=group, v=value), window_ms)


def table(name: str, columns: str, options: Mapping[str, str]) -> str:
    """Return Flink's statement that creates a table."""
    written = ", ".join(f"'{key}' = '{value}'" for key, value in options.items())
    return f"CREATE TEMPORARY TABLE {name} ({columns}) WITH ({written})"


def exact_numbers(value: Any) -> Any:
    """Return a decimal of a result as a scaled integer."""
    return int(Decimal(str(value)).scaleb(SCALE))


def drawn_events(events: pl.DataFrame) -> pl.DataFrame:
    """Return the job's events with all their members."""
    user = pl.lit("u") + (pl.col("ts") % USERS).cast(pl.String)
    return events.select("ts", "page", user_id=user, latency_ms="v", country=pl.lit("DE"))


def _text(*parts: Any) -> Callable[[pl.DataFrame, int], Iterable[bytes]]:
    """Return an encoder that concatenates texts. A part in braces, such as `{page}`, stands for a member."""
    pieces = [pl.col(part[1:-1]).cast(pl.String) if part[0] + part[-1] == "{}" else pl.lit(part) for part in parts]
    return lambda events, number: events.select(pl.concat_str(pieces)).to_series()


def _with_ids(events: pl.DataFrame, number: int) -> Iterable[bytes]:
    """Encode flat events whose `user_id` is an unordered id of 36 characters, like a random UUID."""
    hashed = pl.struct("ts", "page", "latency_ms").hash().cast(pl.String).str.zfill(20)
    ids = pl.concat_str(hashed, pl.lit("-4c1e-9b7d-a1b2c"))
    return _text(*_flat())(events.with_columns(user_id=ids), number)


def _exploded(events: pl.DataFrame, number: int) -> Iterable[bytes]:
    items = pl.concat_str(
        pl.lit('{"page": "'), "page", pl.lit('", "latency_ms": '), "latency_ms", pl.lit(', "user_id": "'), "user_id",
        pl.lit('"}'),
    )  # fmt: skip
    record = pl.int_range(pl.len()) // ELEMENTS
    together = events.group_by(record.alias("record"), maintain_order=True).agg(
        pl.col("ts").first(), pl.col("country").first(), items.str.join(", ").alias("items")
    )
    parts = [pl.lit('{"ts": '), "ts", pl.lit(', "country": "'), "country", pl.lit('", "items": ['), "items"]
    return together.select(pl.concat_str(*parts, pl.lit("]}"))).to_series()


def _avro_schema(latency: Members) -> Members:
    kinds: Members = {
        "ts": {"type": "long", "logicalType": "timestamp-millis"}, "page": "string", "user_id": "string",
        "latency_ms": latency, "country": "string",
    }  # fmt: skip
    return {"type": "record", "name": "View", "fields": [{"name": n, "type": kind} for n, kind in kinds.items()]}


def _avro(latency: Members, value: Callable[[float], Any]) -> Callable[[pl.DataFrame, int], Iterable[bytes]]:
    parsed = fastavro.parse_schema(_avro_schema(latency))

    def encode(events: pl.DataFrame, number: int) -> Iterable[bytes]:
        for event in events.iter_rows(named=True):
            stream = io.BytesIO()
            stream.write(b"\0" + number.to_bytes(4))
            fastavro.schemaless_writer(stream, parsed, {**event, "latency_ms": value(event["latency_ms"])})
            yield stream.getvalue()

    return encode


def _protobuf(events: pl.DataFrame, number: int) -> Iterable[bytes]:
    frame = b"\0" + number.to_bytes(4) + b"\0"
    return (frame + VIEW(**event).SerializeToString() for event in events.iter_rows(named=True))


def _flat(first: str = '", "page": "', last: str = '"}') -> tuple[str, ...]:
    return (
        '{"ts": ', "{ts}", first.removeprefix('"'), "{page}", '", "user_id": "', "{user_id}", '", "latency_ms": ',
        "{latency_ms}", ', "country": "', "{country}", last,
    )  # fmt: skip


def _with_registry(kind: str) -> Callable[[Needs], Members]:
    return lambda needs: {"source": {"format": {"type": kind, "registry": {"url": needs.registry}}}}


def _avro_flink(needs: Needs) -> Mapping[str, str]:
    return {"format": "avro-confluent", "avro-confluent.url": needs.registry}


def _users(needs: Needs) -> list[str]:
    options = {
        "connector": "jdbc", "url": needs.postgres, "table-name": "bench_users", "username": needs.login[0],
        "password": needs.login[1], "lookup.cache": "PARTIAL", "lookup.partial-cache.max-rows": "100000",
    }  # fmt: skip
    return [table("users", "user_id STRING, tier STRING", options)]


_LOOKUP = {
    "name": "users",
    "on": "user_id",
    "from": {"table": "bench_users", "key": "user_id", "secretRef": {"name": "users"}},
    "fields": [{"name": "tier", "type": "string"}],
}
_STAGE = {"python": {"configMap": "enrich", "file": "enrich.py", "function": "enrich"}}
_ITEM = "ROW<page STRING, latency_ms DOUBLE, user_id STRING>"

ROWS: dict[str, Written] = {
    "flat": Written("one flat JSON object", _text(*_flat())),
    "nested": Written(
        "JSON, four of five members in two objects",
        _text(
            '{"ts": ', "{ts}", ', "request": {"page": "', "{page}", '", "latency_ms": ', "{latency_ms}",
            '}, "user": {"id": "', "{user_id}", '", "country": "', "{country}", '"}}',
        ),
        {
            "page": {"path": "request.page"}, "latency_ms": {"path": "request.latency_ms"},
            "user_id": {"path": "user.id"}, "country": {"path": "user.country"},
        },
        columns="ts BIGINT, request ROW<page STRING, latency_ms DOUBLE>, `user` ROW<id STRING, country STRING>",
        read="SELECT t, request.page AS page, request.latency_ms AS latency_ms FROM events",
    ),
    "decimal": Written(
        "flat JSON, the latency is a decimal with three digits after the point",
        _text(*_flat()),
        _DECIMAL,
        columns=_COLUMNS.replace("DOUBLE", f"DECIMAL(18, {SCALE})"),
        exact=True,
    ),
    "avro": Written(
        "Avro with the framing of a registry",
        _avro(_NUMBER_AVRO, lambda value: value),
        spec=_with_registry("avro"),
        format=_avro_flink,
        schema={"schema": json.dumps(_avro_schema(_NUMBER_AVRO))},
    ),
    "avro-decimal": Written(
        "Avro, the latency is Avro's decimal",
        _avro(_DECIMAL_AVRO, lambda value: Decimal(str(value)).quantize(Decimal("0.001"))),
        _DECIMAL,
        spec=_with_registry("avro"),
        columns=_COLUMNS.replace("DOUBLE", f"DECIMAL(18, {SCALE})"),
        format=_avro_flink,
        schema={"schema": json.dumps(_avro_schema(_DECIMAL_AVRO))},
        exact=True,
    ),
    "protobuf": Written(
        "Protobuf with the framing of a registry",
        _protobuf,
        spec=_with_registry("protobuf"),
        why_not="Flink's format protobuf reads messages without the framing of a schema registry",
        schema={
            "schema": base64.b64encode(VIEW.DESCRIPTOR.file.serialized_pb).decode(), "schemaType": "PROTOBUF",
        },
    ),
    "csv": Written(
        "lines of CSV",
        _text("{ts}", ",", "{page}", ",", "{user_id}", ",", "{latency_ms}", ",", "{country}"),
        spec=lambda needs: {"source": {"format": "csv"}},
        format=lambda needs: {"format": "csv"},
    ),
    "exploded": Written(
        f"JSON, {ELEMENTS} events in an array of a record",
        _exploded,
        {name: {"path": f"items[].{name}"} for name in ("page", "latency_ms", "user_id")},
        columns=f"ts BIGINT, country STRING, items ARRAY<{_ITEM}>",
        read="SELECT t, i.page, i.latency_ms FROM events CROSS JOIN UNNEST(items) AS i (page, latency_ms, user_id)",
        elements=ELEMENTS,
    ),
    "dedupe": Written(
        "flat JSON, each event has an id that is remembered for an hour",
        _with_ids,
        spec=lambda needs: {"source": {"dedupe": {"field": "user_id", "window": "1h"}}},
        why_not="the row compares Tidemill with and without dedupe",
    ),
    "lookup": Written(
        f"flat JSON, grouped by a column of a table in Postgres with {USERS:,} rows",
        _text(*_flat()),
        spec=lambda needs: {"lookups": [_LOOKUP]},
        before=_users,
        read="SELECT e.t, u.tier AS page, e.latency_ms FROM events AS e"
        " LEFT JOIN users FOR SYSTEM_TIME AS OF e.p AS u ON e.user_id = u.user_id",
        group="tier",
        postgres=True,
    ),
    "stage": Written(
        "flat JSON, a Python function makes the page of a URL",
        _text(*_flat('", "url": "', '"}')[:3], "{page}", '?from=mail", "user_id": "', *_flat()[5:]),
        spec=lambda needs: {"transform": _STAGE},
        columns=_COLUMNS.replace("page", "url"),
        before=lambda needs: ["CREATE TEMPORARY FUNCTION page AS 'enrich_flink.page' LANGUAGE PYTHON"],
        read="SELECT t, page(url) AS page, latency_ms FROM events",
        python=True,
    ),
}  # fmt: skip
"""The rows by their names in `--only`."""
