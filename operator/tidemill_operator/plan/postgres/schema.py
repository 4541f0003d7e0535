"""The Postgres schema of a pipeline: tables, columns, functions, as text. No database access here.

The definition of each table says what it is for. Times for decisions are epoch milliseconds (bigint), so that no
session's time zone matters. Times for people are timestamptz.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from tidemill_contract import names
from tidemill_contract.duration import parse_ms
from tidemill_contract.expressions.compiler import derived_types
from tidemill_contract.functions.feeds import SINCE
from tidemill_contract.functions.partials import SQL_TYPES, AggregationLayout, field_types, layout, quote
from tidemill_contract.resource.spec import AggregationSpec
from tidemill_contract.runtime import PipelineConfig
from tidemill_contract.tables.storage import partition_days
from tidemill_operator.plan.kafka.claims import TOPICS
from tidemill_operator.plan.model import AggregationRow, Column, Replay, Schema, Table
from tidemill_operator.plan.postgres.failing import HELD_UP, SKIPPED
from tidemill_operator.plan.postgres.kept import KEPT, kept_rows
from tidemill_operator.plan.postgres.partitioning import ensure_partition_sql, ensure_partitions_sql

_SPELLINGS = {"timestamptz": "timestamp with time zone"}


def _columns(*pairs: tuple[str, str]) -> tuple[Column, ...]:
    return tuple(Column(name, definition) for name, definition in pairs)


# The spec generation that may write: a processor with an older config stops before it commits. `accepted` is that spec
# as written; it stays in force when a newer one is refused.
GENERATION = Table(
    "_generation",
    _columns(
        ("only", 'boolean PRIMARY KEY DEFAULT true CHECK ("only")'),
        ("generation", "bigint NOT NULL"),
        ("accepted", "jsonb"),
    ),
    writer="SELECT",
)

# Every version of every aggregation. `closed_until`: windows that end by then take no more events. `rev` counts the
# merged batches. `scanned_until` / `published_until`: progress of detectors and of the results topic. `layout` is the
# number of the current set of columns with values; `fed` has, for each later added column, the layout that added it.
AGGREGATIONS = Table(
    "_aggregations",
    _columns(
        ("id", "integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY"),
        ("name", "text NOT NULL"),
        ("version", "integer NOT NULL"),
        ("table_name", "text NOT NULL"),
        ("reader", "text NOT NULL"),
        ("shape", "jsonb NOT NULL"),
        ("partition_days", "integer NOT NULL"),
        ("retention_ms", "bigint NOT NULL"),
        ("closed_until", "bigint"),
        ("rev", "bigint NOT NULL DEFAULT 0"),
        ("scanned_until", "bigint"),
        ("published_until", "bigint"),
        ("late_dead", "bigint NOT NULL DEFAULT 0"),
        ("late_dropped", "bigint NOT NULL DEFAULT 0"),
        ("created_at", "timestamptz NOT NULL DEFAULT now()"),
        ("layout", "bigint NOT NULL DEFAULT 0"),
        ("fed", "jsonb NOT NULL DEFAULT '{}'"),
    ),
    ("UNIQUE (name, version)",),
    storage="fillfactor = 50",
    writer="SELECT, UPDATE (closed_until, rev, scanned_until, published_until, late_dead, late_dropped)",
)

# A reader is a consumer group that reads the source topic: `live`, or a replay. The row has its event-time clock; a
# replay has none, because nothing is late for it. `switched_at`: when a replay's versions came into force.
READERS = Table(
    "_readers",
    _columns(
        ("reader", "text PRIMARY KEY"),
        ("watermark", "bigint"),
        ("candidate", "bigint"),
        ("candidate_at", "timestamptz"),
        ("active_since", "timestamptz"),
        ("idle_since", "timestamptz"),
        ("idle_base", "bigint"),
        ("switched_at", "timestamptz"),
    ),
    storage="fillfactor = 50",
    writer="SELECT, UPDATE",
)

# One row per source partition, created before Kafka's partition. `next_offset` only changes in the transaction that
# stores the results of the events before it. `suspects` are event times that jumped too far and are not confirmed yet.
# `feeds` (of `live`) are ids of additional versions that its events count for, because a replay has handed them over.
# `former_topic_ids` are ids of deleted topics of the same name: a broker with old metadata may still answer with one.
OFFSETS = Table(
    "_offsets",
    _columns(
        ("reader", "text NOT NULL"),
        ("partition", "integer NOT NULL"),
        ("topic_id", "text"),
        ("former_topic_ids", "text[] NOT NULL DEFAULT '{}'"),
        ("epoch", "integer NOT NULL DEFAULT 0"),
        ("next_offset", "bigint"),
        ("max_event_time", "bigint"),
        ("suspects", "bigint[] NOT NULL DEFAULT '{}'"),
        ("last_event_at", "timestamptz"),
        ("end_confirmed_at", "timestamptz"),
        # Freshness of the last batch: from its oldest record's arrival in Kafka to its commit.
        ("freshness_ms", "bigint"),
        ("consumed", "bigint NOT NULL DEFAULT 0"),
        ("filtered", "bigint NOT NULL DEFAULT 0"),
        ("invalid", "bigint NOT NULL DEFAULT 0"),
        ("feeds", "integer[] NOT NULL DEFAULT '{}'"),
    ),
    ("PRIMARY KEY (reader, partition)",),
    storage="fillfactor = 50",
    writer="SELECT, UPDATE",
)

# Ranges of offsets that Kafka deleted before they were read.
LOST = Table(
    "_lost",
    _columns(
        ("reader", "text NOT NULL"),
        ("partition", "integer NOT NULL"),
        ("epoch", "integer NOT NULL"),
        ("from_offset", "bigint NOT NULL"),
        ("to_offset", "bigint"),
        ("reason", "text NOT NULL"),
        ("noticed_at", "timestamptz NOT NULL DEFAULT now()"),
    ),
    ("PRIMARY KEY (reader, partition, epoch, from_offset)",),
    writer="SELECT, INSERT",
)

# Dead letters: events that count nowhere (''), or were late for one aggregation (its name). Feeds the topic.
DEAD_LETTERS = Table(
    "_dead_letters",
    _columns(
        ("epoch", "integer NOT NULL"),
        ("partition", "integer NOT NULL"),
        ("offset", "bigint NOT NULL"),
        ("aggregation", "text NOT NULL DEFAULT ''"),
        ("reason", "text NOT NULL"),
        ("field", "text"),
        ("detail", "text"),
        ("key", "bytea"),
        ("value", "bytea"),
        ("value_bytes", "bigint"),
        ("event_time", "bigint"),
        ("windows", "bigint[]"),
        ("created_at", "timestamptz NOT NULL DEFAULT now()"),
        ("published", "boolean NOT NULL DEFAULT false"),
        # Bytes that the row is charged in `_kept`.
        ("bytes", "bigint"),
    ),
    ('PRIMARY KEY (epoch, partition, "offset", aggregation)',),
    indexes=(
        ("_dead_letters_unpublished", '(epoch, partition, "offset") WHERE NOT published'),
        ("_dead_letters_by_time", '(created_at, epoch, partition, "offset", aggregation)'),
    ),
    writer="SELECT, INSERT, UPDATE (published)",
)

# The bounded state of each detector and group. For windows, it only changes together with `scanned_until`. For single
# events there is one per partition, whose `aggregation_id` is -1 less the partition's number; it only changes together
# with `next_offset`, and `seen` is the (epoch, offset) of the group's last event.
DETECTORS = Table(
    "_detectors",
    _columns(
        ("anomaly", "text NOT NULL"),
        ("aggregation_id", "integer NOT NULL"),
        ("group_key", "text NOT NULL"),
        ("state", "jsonb NOT NULL"),
        ("seen", "bigint[]"),
    ),
    ("PRIMARY KEY (anomaly, aggregation_id, group_key)",),
    storage="fillfactor = 70",
    writer="SELECT, INSERT, UPDATE, DELETE",
)

# Detector states from before each of the latest windows, if late events can reopen these and they are judged again.
DETECTOR_HISTORY = Table(
    "_detector_history",
    _columns(
        ("anomaly", "text NOT NULL"),
        ("aggregation_id", "integer NOT NULL"),
        ("group_key", "text NOT NULL"),
        ("window_start", "bigint NOT NULL"),
        ("state", "jsonb NOT NULL"),
    ),
    ("PRIMARY KEY (anomaly, aggregation_id, group_key, window_start)",),
    indexes=(("_detector_history_by_time", "(aggregation_id, window_start)"),),
    writer="SELECT, INSERT, UPDATE, DELETE",
)

# Batches that changed closed windows: the windows with this `rev` that start in [first_start, last_start] (epoch ms).
# They are published and judged again; then the row is deleted.
CORRECTIONS = Table(
    "_corrections",
    _columns(
        ("aggregation_id", "integer NOT NULL"),
        ("rev", "bigint NOT NULL"),
        ("first_start", "bigint NOT NULL"),
        ("last_start", "bigint NOT NULL"),
        ("published", "boolean NOT NULL"),
        ("scanned", "boolean NOT NULL"),
    ),
    ("PRIMARY KEY (aggregation_id, rev)",),
    writer="SELECT, INSERT, UPDATE, DELETE",
)

# Anomalies. `group_key` is a JSON object of the group columns. An anomaly of a single event has no aggregation (''),
# the field as `metric`, its time as both ends of the window, and its record's position. Feeds the anomalies topic.
ANOMALIES = Table(
    "_anomalies",
    _columns(
        ("id", "bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY"),
        ("anomaly", "text NOT NULL"),
        ("aggregation", "text NOT NULL"),
        ("version", "integer NOT NULL"),
        ("metric", "text NOT NULL"),
        ("group_key", "jsonb NOT NULL"),
        ("window_start", "timestamptz NOT NULL"),
        ("window_end", "timestamptz NOT NULL"),
        ("value", "double precision NOT NULL"),
        ("score", "double precision NOT NULL"),
        ("expected", "double precision"),
        ("lower", "double precision"),
        ("upper", "double precision"),
        ("severity", "text NOT NULL DEFAULT 'warning'"),
        ("revision", "integer NOT NULL DEFAULT 0"),
        ("detected_at", "timestamptz NOT NULL DEFAULT now()"),
        ("published", "boolean NOT NULL DEFAULT false"),
        ("epoch", "integer"),
        ("partition", "integer"),
        ("offset", "bigint"),
        # Bytes that the row is charged in `_kept`.
        ("bytes", "bigint"),
    ),
    (
        "UNIQUE NULLS NOT DISTINCT (anomaly, aggregation, version, group_key, window_start, revision, epoch, partition,"
        ' "offset")',
    ),
    indexes=(
        ("_anomalies_unpublished", "(id) WHERE NOT published"),
        ("_anomalies_by_time", "(window_start, id)"),
    ),
    writer="SELECT, INSERT, UPDATE (published)",
)

# Raw events, if the spec stores them. `data` is the decoded event.
EVENTS = Table(
    "_events",
    _columns(
        ("event_time", "timestamptz NOT NULL"),
        ("epoch", "integer NOT NULL"),
        ("partition", "integer NOT NULL"),
        ("offset", "bigint NOT NULL"),
        ("data", "jsonb NOT NULL"),
    ),
    ('PRIMARY KEY (event_time, epoch, partition, "offset")',),
    partition_by="RANGE (event_time)",
    writer="SELECT, INSERT",
)

SYSTEM_TABLES = (
    GENERATION,
    AGGREGATIONS,
    READERS,
    OFFSETS,
    LOST,
    DEAD_LETTERS,
    DETECTORS,
    DETECTOR_HISTORY,
    CORRECTIONS,
    ANOMALIES,
    KEPT,
    SKIPPED,
    HELD_UP,
    TOPICS,
)


def window_table(name: str, plan: AggregationLayout) -> Table:
    """Return the table of an aggregation's windows (or panes, for hopping windows)."""
    columns = [Column(group, SQL_TYPES[kind]) for group, kind in plan.group_by]
    columns.append(Column("window_start", "timestamptz NOT NULL"))
    if plan.sessions:
        columns.append(Column("window_end", "timestamptz NOT NULL"))
    if plan.hopping:
        columns.append(Column("_after", "timestamptz NOT NULL DEFAULT '-infinity'"))
    # A row from before this column counts as older than every added column.
    columns += [Column("_rev", "bigint NOT NULL"), Column(SINCE, "bigint NOT NULL DEFAULT 0")]
    columns += [Column(p.column, p.sql_type) for p in plan.partials]
    # Group columns may be null, and null is a group.
    unique = ", ".join(quote(column) for column in plan.key_columns)
    indexes = [(f"{name}_by_time"[:63], '("window_start")')]
    if plan.sessions:
        # Closing reads the latest ends; merging reads a group's sessions that end after an event.
        ends = ", ".join(quote(column) for column in (*(group for group, _ in plan.group_by), "window_end"))
        indexes += [(f"{name}_by_end"[:63], '("window_end")'), (f"{name}_open"[:63], f"({ends})")]
    return Table(
        name,
        tuple(columns),
        (f"UNIQUE NULLS NOT DISTINCT ({unique})",),
        partition_by='RANGE ("window_start")',
        storage="fillfactor = 80",
        indexes=tuple(indexes if not plan.sessions or plan.group_by else indexes[:2]),
        # Joined sessions become one row.
        writer="SELECT, INSERT, UPDATE, DELETE" if plan.sessions else "SELECT, INSERT, UPDATE",
    )


def shape_of(aggregation: AggregationSpec, plan: AggregationLayout) -> str:
    """Return the shape of a version for `_aggregations`: its groups, its window, its columns.

    `types` has the field behind each column and its type, because sketches of numbers and of integers are both bytes.
    """
    shape = {
        "groupBy": [list(pair) for pair in plan.group_by],
        "window": aggregation.window.model_dump(by_alias=True, exclude_none=True),
        "partials": [p.column for p in plan.partials],
        "types": {p.column: list(p.noted) for p in plan.partials if p.noted is not None},
    }
    return json.dumps(shape, sort_keys=True)


def column_type(definition: str) -> str:
    """Return the type of a column's definition, as Postgres spells it."""
    name = re.split(r" (?:COLLATE|NOT NULL|DEFAULT|PRIMARY KEY|GENERATED|CHECK)\b", definition, maxsplit=1)[0]
    return _SPELLINGS.get(name, name)


def desired_schema(config: PipelineConfig, replay: Replay | None = None) -> Schema:
    """Return the desired schema of a pipeline.

    Args:
        config: the resolved config.
        replay: the current replay, whose versions are created as well.
    """
    spec = config.spec
    schema_name = config.schema_name
    tables = list(SYSTEM_TABLES)
    if spec.events.store:
        tables.append(EVENTS)
    live = {ref.name: ref.version for ref in config.aggregations}
    versions = [(live, "live"), *([(replay.versions, replay.reader)] if replay else [])]
    found = [pair for numbers, reader in versions for pair in _versions(config, numbers, reader)]
    return Schema(
        name=schema_name,
        owner=names.role(schema_name, "owner"),
        writer=names.role(schema_name, "writer"),
        reader=names.role(schema_name, "reader"),
        tables=(*tables, *(table for table, _ in found)),
        functions=(
            ("ensure_partitions", ensure_partitions_sql(schema_name)),
            ("ensure_partition", ensure_partition_sql(schema_name)),
        ),
        aggregations=tuple(row for _, row in found),
        partitions=spec.source.topic.partitions or 1,
        generation=config.generation,
        events_retention_ms=parse_ms(spec.events.retention) if spec.events.store else None,
        kept=kept_rows(spec),
        replay=replay.reader if replay else "",
    )


def _versions(config: PipelineConfig, numbers: Mapping[str, int], reader: str) -> list[tuple[Table, AggregationRow]]:
    spec = config.spec
    types = field_types(spec, derived_types(spec))
    found = []
    for aggregation in spec.aggregations:
        if aggregation.name not in numbers:
            continue
        version = numbers[aggregation.name]
        plan = layout(aggregation, types)
        table = names.window_table(aggregation.name, version)
        retention = parse_ms(aggregation.retention)
        row = AggregationRow(
            aggregation.name,
            version,
            table,
            reader,
            shape_of(aggregation, plan),
            partition_days(retention),
            retention,
        )
        found.append((window_table(table, plan), row))
    return found
