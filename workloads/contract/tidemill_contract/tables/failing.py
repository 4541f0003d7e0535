"""`_skipped` and `_held_up`: what processors passed over, and what they cannot do for now."""

from __future__ import annotations

from tidemill_contract.tables.definition import Table, columns

SKIPPED = Table(
    "_skipped",
    columns(
        ("id", "bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY"),
        ("aggregation", "text NOT NULL"),
        ("version", "integer NOT NULL"),
        ("duty", "text NOT NULL"),
        ("window_start", "timestamptz"),
        ("last_start", "timestamptz"),
        ("group_key", "jsonb"),
        ("metrics", "text[] NOT NULL DEFAULT '{}'"),
        ("reason", "text NOT NULL"),
        ("skipped_at", "timestamptz NOT NULL DEFAULT now()"),
    ),
    writer="SELECT, INSERT, DELETE",
)
"""The latest of what could not be read, judged or published and was passed over: of windows that start in
[window_start, last_start] these metrics, or all if none are named; of the group, or all if it is null. Of dead
letters and anomalies there is no window, and the aggregation is ''.
"""

HELD_UP = Table(
    "_held_up",
    columns(
        ("aggregation", "text NOT NULL"),
        ("version", "integer NOT NULL"),
        ("duty", "text NOT NULL"),
        ("reason", "text NOT NULL"),
        ("since", "timestamptz NOT NULL DEFAULT now()"),
        ("tried_at", "timestamptz NOT NULL DEFAULT now()"),
    ),
    ("PRIMARY KEY (aggregation, version, duty)",),
    writer="SELECT, INSERT, UPDATE, DELETE",
)
"""What processors cannot do now for an aggregation ('': for the pipeline), and try again: the row goes when it is done.
"""
