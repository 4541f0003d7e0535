"""`_detectors` and `_detector_history`: the states of anomaly detectors, current and earlier."""

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
    writer="SELECT, INSERT, UPDATE, DELETE",
)
"""The bounded state of each detector and group. For windows, it only changes together with `scanned_until`. For single
events there is one state for each partition, whose `aggregation_id` is -1 less the partition's number; it only changes
together with `next_offset`, and `seen` is the (epoch, offset) of the group's last event.
"""

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
    writer="SELECT, INSERT, UPDATE, DELETE",
)
"""Detector states from before each of the latest windows, if late events can reopen these and they are judged again."""


def read(schema: str) -> str:
    """What detectors know.

    Parameters: list of anomalies, aggregation's id or place, list of groups. Rows: anomaly, group, state as text.
    """
    return (
        f"SELECT anomaly, group_key, state::text FROM {schema}._detectors"
        " WHERE anomaly = ANY(%s) AND aggregation_id = %s AND group_key = ANY(%s)"
    )


def groups(schema: str) -> str:
    """Groups that something is known of, the one that came last at the end. Parameters: anomaly, place."""
    return f"SELECT group_key FROM {schema}._detectors WHERE anomaly = %s AND aggregation_id = %s ORDER BY seen"


def forget(schema: str) -> str:
    """Parameters: anomaly, place, list of groups."""
    return f"DELETE FROM {schema}._detectors WHERE anomaly = %s AND aggregation_id = %s AND group_key = ANY(%s)"


def save(schema: str) -> str:
    """Parameters: anomaly, place, group, state, (epoch, offset) of the last event or null."""
    return (
        f"INSERT INTO {schema}._detectors (anomaly, aggregation_id, group_key, state, seen) VALUES (%s, %s, %s, %s, %s)"
        " ON CONFLICT (anomaly, aggregation_id, group_key) DO UPDATE SET state = EXCLUDED.state, seen = EXCLUDED.seen"
    )


def remember(schema: str) -> str:
    """Keep what was known before a window, once.

    Parameters: anomaly, aggregation's id, group, start of the window (epoch ms), state.
    """
    return (
        f"INSERT INTO {schema}._detector_history (anomaly, aggregation_id, group_key, window_start, state)"
        " VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING"
    )


def forget_before(schema: str) -> str:
    """Drop what was known before old windows. Parameters: aggregation's id, the first start that stays (epoch ms)."""
    return f"DELETE FROM {schema}._detector_history WHERE aggregation_id = %s AND window_start < %s"


def remembered(schema: str) -> str:
    """What was known before windows.

    Parameters: aggregation's id, list of starts (epoch ms). Rows: anomaly, group, start, state as text.
    """
    return (
        f"SELECT anomaly, group_key, window_start, state::text FROM {schema}._detector_history"
        " WHERE aggregation_id = %s AND window_start = ANY(%s)"
    )
