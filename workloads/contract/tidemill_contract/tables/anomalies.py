"""`_anomalies`: what detectors found.

Anomalies found. `group_key` is a JSON object of the group columns. One of a single event has no aggregation (''), its
field as `metric`, its time as both ends of the window, and says which record it is of. Feeds the anomalies topic.
"""

from __future__ import annotations

from tidemill_contract.tables.definition import Table, columns

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
        # What it counts in `_kept`.
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
