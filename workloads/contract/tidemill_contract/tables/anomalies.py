"""`_anomalies`: the anomalies that detectors found. Processors publish each row to the anomalies topic.

For an anomaly of a single event, `aggregation` is empty, and `metric` is the name of the field. The window of such an
anomaly starts and ends at the event time.
"""

from __future__ import annotations

from tidemill_contract.tables.definition import Table, columns, to_ms

TABLE = Table(
    "_anomalies",
    columns(
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
        # `bytes` is the row's size, which counts towards the quota of stored anomalies.
        ("bytes", "bigint"),
        ("element", "integer"),
    ),
    (
        "UNIQUE NULLS NOT DISTINCT (anomaly, aggregation, version, group_key, window_start, revision, epoch, partition,"
        ' "offset", element)',
    ),
    indexes=(
        ("_anomalies_unpublished", "(id) WHERE NOT published"),
        ("_anomalies_by_time", "(window_start, id)"),
    ),
    writer_privileges="SELECT, INSERT, UPDATE (published)",
    added_key_columns=("element",),
)


_CONTENT = (
    "anomaly, aggregation, version, metric, group_key, window_start, window_end, value, score, expected, lower, upper,"
    ' severity, revision, epoch, partition, "offset", element'
)


def insert(schema: str) -> str:
    """Store an anomaly. If the anomaly is stored already, no row is returned.

    Parameters: anomaly, aggregation, version, metric, group, start and end of the window, value, score, expected,
    lower, upper, severity, revision, epoch, partition, offset, element, bytes. Column: bytes.
    """
    return (
        f"INSERT INTO {schema}._anomalies ({_CONTENT}, bytes)"
        f" VALUES ({', '.join(['%s'] * 19)}) ON CONFLICT DO NOTHING"
        " RETURNING bytes"
    )


def of_windows(schema: str) -> str:
    """Select the newest anomaly of each window, for a list of window starts in epoch ms.

    Parameters: aggregation, version, list of starts (epoch ms). Columns: anomaly, group, start (epoch ms), value,
    severity.
    """
    return (
        f"SELECT DISTINCT ON (anomaly, group_key, window_start) anomaly, group_key, {to_ms('window_start')}, value,"
        f" severity FROM {schema}._anomalies WHERE aggregation = %s AND version = %s"
        " AND window_start = ANY(SELECT to_timestamp(s / 1000.0) FROM unnest(%s::bigint[]) AS s)"
        " ORDER BY anomaly, group_key, window_start, revision DESC"
    )


def unpublished(schema: str, limit: int) -> str:
    """Select and lock the next anomalies to publish.

    Columns: id, anomaly, aggregation, version, metric, group, start and end of the window, value, score, expected,
    lower, upper, severity, revision, epoch, partition, offset, element.
    """
    return (
        f"SELECT id, {_CONTENT} FROM {schema}._anomalies WHERE NOT published ORDER BY id LIMIT {limit}"
        " FOR UPDATE SKIP LOCKED"
    )


def set_published(schema: str) -> str:
    """Mark anomalies as published.

    Parameter: list of ids.
    """
    return f"UPDATE {schema}._anomalies SET published = true WHERE id = ANY(%s)"


def count(schema: str) -> str:
    """Count the anomalies.

    Column: their number.
    """
    return f"SELECT count(*) FROM {schema}._anomalies"


def listing(schema: str) -> str:
    """Select the latest revision of each anomaly. Omit anomalies whose latest revision has the severity `cleared`."""
    return (
        'SELECT id, anomaly, aggregation, version, metric, group_key AS "group", window_start, window_end, value,'
        ' score, severity, expected, lower, upper, revision, partition, "offset", element, detected_at'
        f" FROM {schema}._anomalies AS a"
        f" WHERE severity <> 'cleared' AND NOT EXISTS (SELECT FROM {schema}._anomalies AS later"
        " WHERE later.anomaly = a.anomaly AND later.aggregation = a.aggregation AND later.version = a.version"
        " AND later.group_key = a.group_key AND later.window_start = a.window_start AND later.revision > a.revision)"
    )
