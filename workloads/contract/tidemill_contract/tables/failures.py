"""`_skipped`: data that processors skipped. `_held_up`: currently failing tasks, such as publishing."""

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
    writer_privileges="SELECT, INSERT, DELETE",
)
"""The latest skipped data: windows that start between `window_start` and `last_start`. An empty `metrics` means all
metrics, and a null `group_key` means all groups. For dead letters and anomalies, the aggregation is '' and the window
is null."""

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
    writer_privileges="SELECT, INSERT, UPDATE, DELETE",
)
"""The tasks (column `duty`) that currently fail and are retried. A row is deleted when the task succeeds. The
aggregation '' means the whole pipeline."""

UNREAD_LOOKUP, STALE_LOOKUP = "lookup", "stale lookup"
"""The values of `duty` for a lookup that was never read, and for a lookup with outdated rows. The column `aggregation`
has the lookup's name."""
LOOKUPS = (UNREAD_LOOKUP, STALE_LOOKUP)


def insert_skipped(schema: str) -> str:
    """Store skipped data.

    Parameters: aggregation, version, task (`duty`), first and last start, group, metrics, reason.
    """
    return (
        f"INSERT INTO {schema}._skipped"
        " (aggregation, version, duty, window_start, last_start, group_key, metrics, reason)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"
    )


def trim_skipped(schema: str, max_rows: int) -> str:
    """Delete the oldest rows of skipped data, so that about `max_rows` rows remain."""
    return f"DELETE FROM {schema}._skipped WHERE id <= (SELECT max(id) FROM {schema}._skipped) - {max_rows}"


def record_held_up(schema: str) -> str:
    """Record that a task (such as publishing) fails.

    Parameters: `aggregation`, `version`, `duty` (the task), `reason`.
    """
    return (
        f"INSERT INTO {schema}._held_up (aggregation, version, duty, reason) VALUES (%s, %s, %s, %s)"
        " ON CONFLICT (aggregation, version, duty)"
        " DO UPDATE SET reason = EXCLUDED.reason, tried_at = now()"
    )


def clear_held_up(schema: str) -> str:
    """Record that a task (such as publishing) no longer fails.

    Parameters: `aggregation`, `version`, `duty` (the task).
    """
    return f"DELETE FROM {schema}._held_up WHERE aggregation = %s AND version = %s AND duty = %s"
