"""`_offsets`: the positions of readers in the source topic. `_lost`: offsets that readers could not read."""

from __future__ import annotations

from tidemill_contract.tables import slots
from tidemill_contract.tables.definition import CLOCK_MS, Table, columns, to_ms
from tidemill_contract.tables.readers import LIVE

TABLE = Table(
    "_offsets",
    columns(
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
        # For the latest batch, the time from the oldest record's arrival to the commit.
        ("freshness_ms", "bigint"),
        ("consumed", "bigint NOT NULL DEFAULT 0"),
        ("filtered", "bigint NOT NULL DEFAULT 0"),
        ("invalid", "bigint NOT NULL DEFAULT 0"),
        ("feeds", "integer[] NOT NULL DEFAULT '{}'"),
        ("duplicates", "bigint NOT NULL DEFAULT 0"),
    ),
    ("PRIMARY KEY (reader, partition)",),
    storage="fillfactor = 50",
    writer_privileges="SELECT, UPDATE",
)
"""One row for each reader and partition, with the position `next_offset`. The transaction that stores the results of
a batch also advances the position. If a partition is read for the first time, or records are lost, a processor sets
the position without results. `suspects` has the event times that jumped ahead too far and are not confirmed yet.
`feeds` has the ids of the further versions that count the live events of the partition. `former_topic_ids` has the
ids of deleted topics with the same name, which a broker with old metadata may still return."""

LOST = Table(
    "_lost",
    columns(
        ("reader", "text NOT NULL"),
        ("partition", "integer NOT NULL"),
        ("epoch", "integer NOT NULL"),
        ("from_offset", "bigint NOT NULL"),
        ("to_offset", "bigint"),
        ("reason", "text NOT NULL"),
        ("noticed_at", "timestamptz NOT NULL DEFAULT now()"),
    ),
    ("PRIMARY KEY (reader, partition, epoch, from_offset)",),
    writer_privileges="SELECT, INSERT",
)
"""The ranges of offsets that Kafka deleted before a reader had read the records."""


def read(schema: str, reader: str) -> str:
    """Select positions of partitions.

    Parameter: list of partitions. Columns: partition, topic id, epoch, next offset, former topic ids.
    """
    return (
        f"SELECT partition, topic_id, epoch, next_offset, former_topic_ids FROM {schema}._offsets"
        f" WHERE reader = '{reader}' AND partition = ANY(%s)"
    )


def changed_topics(schema: str, reader: str) -> str:
    """Select the partitions whose stored topic id differs from the given topic id.

    Parameters: list of partitions, list of their topic ids. Column: partition.
    """
    return (
        f"SELECT o.partition FROM {schema}._offsets o"
        " JOIN unnest(%s::integer[], %s::text[]) AS known (partition, topic_id) USING (partition)"
        f" WHERE o.reader = '{reader}' AND o.topic_id IS DISTINCT FROM known.topic_id"
    )


def set_position(schema: str, reader: str) -> str:
    """Set the position of a partition, unless the stored position differs from the expected position.

    Parameters: new topic id, new topic id again, new epoch, new offset, partition, expected topic id, expected epoch,
    expected offset.
    """
    return (
        f"UPDATE {schema}._offsets SET former_topic_ids = CASE WHEN topic_id <> %s"
        " THEN former_topic_ids || topic_id ELSE former_topic_ids END, topic_id = %s, epoch = %s, next_offset = %s"
        f" WHERE reader = '{reader}' AND partition = %s AND topic_id IS NOT DISTINCT FROM %s AND epoch = %s"
        " AND next_offset IS NOT DISTINCT FROM %s"
    )


def confirm_ends(schema: str, reader: str) -> str:
    """Record that partitions were read to the end.

    Skip partitions whose stored position differs from the given position.

    Parameters: age of the end offsets (in seconds), list of partitions, list of next offsets, list of epochs.
    """
    return (
        f"UPDATE {schema}._offsets AS o SET end_confirmed_at = clock_timestamp() - %s * interval '1 second'"
        " FROM unnest(%s::integer[], %s::bigint[], %s::integer[]) AS c (partition, next_offset, epoch)"
        f" WHERE o.reader = '{reader}' AND o.partition = c.partition AND o.next_offset = c.next_offset"
        " AND o.epoch = c.epoch"
    )


def lock(schema: str, reader: str) -> str:
    """Select and lock positions, in the order of the partitions.

    Parameter: list of partitions. Columns: partition, next offset, epoch, newest event time, `suspects`, arrival of the
    last event (epoch ms), the server's clock (epoch ms), `feeds`.
    """
    return (
        f"SELECT partition, next_offset, epoch, max_event_time, suspects, {to_ms('last_event_at')}, {CLOCK_MS},"
        f" feeds FROM {schema}._offsets WHERE reader = '{reader}' AND partition = ANY(%s)"
        " ORDER BY partition FOR UPDATE"
    )


def advance(schema: str, reader: str) -> str:
    """Advance the position of a partition past a batch.

    Parameters: next offset, newest event time, `suspects`, arrival of the oldest record (epoch ms), numbers of
    consumed, filtered, invalid and duplicate records, partition.
    """
    return (
        f"UPDATE {schema}._offsets SET next_offset = %s, max_event_time = %s, suspects = %s,"
        f" last_event_at = clock_timestamp(), freshness_ms = greatest(0, {CLOCK_MS} - %s),"
        " consumed = consumed + %s, filtered = filtered + %s,"
        " invalid = invalid + %s, duplicates = duplicates + %s"
        f" WHERE reader = '{reader}' AND partition = %s"
    )


def event_times(schema: str, reader: str, *, multi_topic: bool = False) -> str:
    """Select the event times of partitions.

    For a pipeline with a list of topics, `multi_topic` is true. The result then omits partitions that processors no
    longer read.

    Columns: partition, newest event time, unconfirmed event times (`suspects`), arrival of the last event (epoch ms),
    time at which the partition was last read to its end (epoch ms).
    """
    return (
        f"SELECT partition, max_event_time, suspects, {to_ms('last_event_at')}, {to_ms('end_confirmed_at')}"
        f" FROM {schema}._offsets WHERE reader = '{reader}'"
        + (f" AND {slots.active_condition(schema, '_offsets.partition')}" if multi_topic else "")
    )


def lock_next(schema: str) -> str:
    """Select and lock the positions of a reader, in the order of the partitions.

    Parameters: reader, list of partitions. Columns: partition, next offset.
    """
    return (
        f"SELECT partition, next_offset FROM {schema}._offsets WHERE reader = %s AND partition = ANY(%s)"
        " ORDER BY partition FOR UPDATE"
    )


def live_positions(schema: str, *, lock: bool = False) -> str:
    """Select the live processors' positions in the partitions that a replay reads.

    Omit partitions in which the replay reads a topic with a different id.

    If `lock` is true, lock the selected rows.

    Parameters: the replay's reader, list of partitions. Columns: partition, next offset. There is no row for a
    partition that the live processors have not read yet.
    """
    query = (
        f"SELECT l.partition, l.next_offset FROM {schema}._offsets l JOIN {schema}._offsets o"
        f" ON o.reader = %s AND o.partition = l.partition AND o.topic_id = l.topic_id WHERE l.reader = '{LIVE}'"
        f" AND l.partition = ANY(%s) AND l.next_offset IS NOT NULL ORDER BY l.partition"
    )
    return query + (" FOR UPDATE OF l" if lock else "")


def handed_over_partitions(schema: str) -> str:
    """Select the partitions for which `feeds` contains all given ids of aggregation versions.

    Parameter: list of ids. Column: partition.
    """
    return f"SELECT partition FROM {schema}._offsets WHERE reader = '{LIVE}' AND feeds @> %s::integer[]"


def mark_handed_over(schema: str) -> str:
    """Add ids of aggregation versions to `feeds`, so that live processors fill the versions.

    Rows that contain all ids already stay unchanged.

    Parameters: version ids, partitions, version ids again.
    """
    return (
        f"UPDATE {schema}._offsets SET feeds = feeds || %s::integer[]"
        f" WHERE reader = '{LIVE}' AND partition = ANY(%s) AND NOT feeds @> %s::integer[]"
    )


def progress(schema: str) -> str:
    """Select the progress of a reader, in the order of the partitions.

    Parameter: reader. Columns: partition, epoch, next offset, newest event time, numbers of records consumed, filtered
    and invalid, arrival of the last event, time at which the partition was last read to its end, number of duplicates.
    """
    # An older schema may lack `duplicates`, so read the column through to_jsonb.
    return (
        "SELECT partition, epoch, next_offset, max_event_time, consumed, filtered, invalid, last_event_at,"
        " end_confirmed_at, coalesce((to_jsonb(o) ->> 'duplicates')::bigint, 0)"
        f" FROM {schema}._offsets AS o WHERE reader = %s ORDER BY partition"
    )


def insert_lost_range(schema: str, reader: str) -> str:
    """Store a lost range of offsets, unless the range is stored already.

    Parameters: partition, epoch, first offset, end (null if it is unknown), reason.
    """
    return (
        f"INSERT INTO {schema}._lost (reader, partition, epoch, from_offset, to_offset, reason)"
        f" VALUES ('{reader}', %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING"
    )


LOST_RANGE_COLUMNS = ("partition", "epoch", "from_offset", "to_offset", "reason")
"""The columns of `lost_ranges`."""


def lost_ranges(schema: str) -> str:
    """Select a reader's first 100 lost ranges of offsets, in the order of the partitions.

    Parameter: reader. Columns: `LOST_RANGE_COLUMNS`.
    """
    return (
        f"SELECT {', '.join(LOST_RANGE_COLUMNS)} FROM {schema}._lost WHERE reader = %s"
        " ORDER BY partition, epoch, from_offset LIMIT 100"
    )
