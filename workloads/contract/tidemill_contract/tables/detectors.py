"""`_detectors` and `_detector_history`: the current and the earlier states of anomaly detectors."""

from __future__ import annotations

from tidemill_contract.tables.definition import Table, columns

TABLE = Table(
    "_detectors",
    columns(
        ("anomaly", "text NOT NULL"),
        ("aggregation_id", "integer NOT NULL"),
        ("group_key", "text NOT NULL"),
        ("state", "jsonb NOT NULL"),
        ("seen", "bigint[]"),
    ),
    ("PRIMARY KEY (anomaly, aggregation_id, group_key)",),
    storage="fillfactor = 70",
    writer_privileges="SELECT, INSERT, UPDATE, DELETE",
)
"""The state of each detector and group. A detector of windows changes its state together with `scanned_until`. A
detector of single events has a state for each partition, with -1 - partition as `aggregation_id`. The state changes
together with `next_offset`. `seen` has the epoch, the offset and the array index of the group's last event."""

HISTORY = Table(
    "_detector_history",
    columns(
        ("anomaly", "text NOT NULL"),
        ("aggregation_id", "integer NOT NULL"),
        ("group_key", "text NOT NULL"),
        ("window_start", "bigint NOT NULL"),
        ("state", "jsonb NOT NULL"),
    ),
    ("PRIMARY KEY (anomaly, aggregation_id, group_key, window_start)",),
    indexes=(("_detector_history_by_time", "(aggregation_id, window_start)"),),
    writer_privileges="SELECT, INSERT, UPDATE, DELETE",
)
"""The states of detectors before each of the latest windows. If late events change a window, the scan starts again from
the earlier state."""


def read(schema: str) -> str:
    """Select states of detectors.

    Parameters: list of anomalies, `aggregation_id`, list of groups. Columns: anomaly, group, state as text.
    """
    return (
        f"SELECT anomaly, group_key, state::text FROM {schema}._detectors"
        " WHERE anomaly = ANY(%s) AND aggregation_id = %s AND group_key = ANY(%s)"
    )


def groups(schema: str) -> str:
    """Select the groups of a detector. The group whose last event is oldest (see `seen`) is first.

    Parameters: anomaly, `aggregation_id`. Column: group.
    """
    return f"SELECT group_key FROM {schema}._detectors WHERE anomaly = %s AND aggregation_id = %s ORDER BY seen"


def delete_groups(schema: str) -> str:
    """Delete states of detectors.

    Parameters: anomaly, `aggregation_id`, list of groups.
    """
    return f"DELETE FROM {schema}._detectors WHERE anomaly = %s AND aggregation_id = %s AND group_key = ANY(%s)"


def save(schema: str) -> str:
    """Store or replace the state of a detector for a group.

    Parameters: anomaly, `aggregation_id`, group, state, (epoch, offset) of the group's last event or null.
    """
    return (
        f"INSERT INTO {schema}._detectors (anomaly, aggregation_id, group_key, state, seen) VALUES (%s, %s, %s, %s, %s)"
        " ON CONFLICT (anomaly, aggregation_id, group_key) DO UPDATE SET state = EXCLUDED.state, seen = EXCLUDED.seen"
    )


def insert_history(schema: str) -> str:
    """Store the state that a detector had before a window. A state that is stored already stays unchanged.

    Parameters: anomaly, aggregation's id, group, start of the window (epoch ms), state.
    """
    return (
        f"INSERT INTO {schema}._detector_history (anomaly, aggregation_id, group_key, window_start, state)"
        " VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING"
    )


def delete_history_before(schema: str) -> str:
    """Delete the stored states for windows that start before a time (epoch ms).

    Parameters: aggregation's id, start of the first window to keep (epoch ms).
    """
    return f"DELETE FROM {schema}._detector_history WHERE aggregation_id = %s AND window_start < %s"


def history(schema: str) -> str:
    """Select the states that detectors had before the given windows.

    Parameters: aggregation's id, list of starts (epoch ms). Columns: anomaly, group, start, state as text.
    """
    return (
        f"SELECT anomaly, group_key, window_start, state::text FROM {schema}._detector_history"
        " WHERE aggregation_id = %s AND window_start = ANY(%s)"
    )
