"""`_detectors` and `_detector_history`: what detectors of anomalies know, and what they knew before."""

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
"""One row per detector and group: its bounded state. That of an aggregation's windows moves only together with
`scanned_until`. That of single events is kept for each partition, in place of an aggregation as -1 less its number;
it moves only together with `next_offset`, and `seen` is the (epoch, offset) of the group's last event.
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
"""What detectors knew before each of the latest windows, where late events can reopen these: they are judged anew by
it.
"""
