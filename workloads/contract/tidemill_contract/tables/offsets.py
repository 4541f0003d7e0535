"""`_offsets` and `_lost`: the positions of readers in the source topic, and ranges that they could not read."""

from __future__ import annotations

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
        # Of the last batch: from its oldest record's arrival in Kafka to its commit.
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
"""One row for each source partition, created before Kafka's partition. `next_offset` only changes in the transaction
that stores the results of the events before it. `suspects` are event times that jumped too far and are not confirmed
yet.
`feeds` (of `live`) are ids of additional versions that its events count for, because a replay has handed them over.
`former_topic_ids` are ids of deleted topics of the same name: a broker with old metadata may still answer with one.
"""

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
    writer="SELECT, INSERT",
)
"""Ranges of offsets that Kafka deleted before they were read."""


def read(schema: str, reader: str) -> str:
    """Rows: partition, topic id, epoch, next offset, former topic ids. Parameter: list of partitions."""
    return (
        f"SELECT partition, topic_id, epoch, next_offset, former_topic_ids FROM {schema}._offsets"
        f" WHERE reader = '{reader}' AND partition = ANY(%s)"
    )


def untaken(schema: str, reader: str) -> str:
    """Partitions below a number that were not read in the topic with this id.

    Parameters: number, topic id. Rows: partition.
    """
    return (
        f"SELECT partition FROM {schema}._offsets"
        f" WHERE reader = '{reader}' AND partition < %s AND topic_id IS DISTINCT FROM %s"
    )


def move(schema: str, reader: str) -> str:
    """Set where a partition is read, if it stands where it was.

    Parameters: topic id twice, epoch, next offset, partition; what it was: topic id, epoch, next offset.
    """
    return (
        f"UPDATE {schema}._offsets SET former_topic_ids = CASE WHEN topic_id <> %s"
        " THEN former_topic_ids || topic_id ELSE former_topic_ids END, topic_id = %s, epoch = %s, next_offset = %s"
        f" WHERE reader = '{reader}' AND partition = %s AND topic_id IS NOT DISTINCT FROM %s AND epoch = %s"
        " AND next_offset IS NOT DISTINCT FROM %s"
    )


def confirm_ends(schema: str, reader: str) -> str:
    """Note that partitions were read to their ends so many seconds ago, where they still stand there.

    Parameters: seconds, and lists of partitions, next offsets and epochs.
    """
    return (
        f"UPDATE {schema}._offsets AS o SET end_confirmed_at = clock_timestamp() - %s * interval '1 second'"
        " FROM unnest(%s::integer[], %s::bigint[], %s::integer[]) AS c (partition, next_offset, epoch)"
        f" WHERE o.reader = '{reader}' AND o.partition = c.partition AND o.next_offset = c.next_offset"
        " AND o.epoch = c.epoch"
    )


def lock(schema: str, reader: str) -> str:
    """Lock partitions, in their order.

    Parameter: list of partitions. Rows: partition, next offset, epoch, newest event time, suspects, when the last event
    came (epoch ms), the server's clock (epoch ms), versions that it feeds.
    """
    return (
        f"SELECT partition, next_offset, epoch, max_event_time, suspects, {to_ms('last_event_at')}, {CLOCK_MS},"
        f" feeds FROM {schema}._offsets WHERE reader = '{reader}' AND partition = ANY(%s)"
        " ORDER BY partition FOR UPDATE"
    )


def advance(schema: str, reader: str) -> str:
    """Move a partition on by a batch.

    Parameters: next offset, newest event time, suspects, arrival of the oldest record (epoch ms), numbers of records
    consumed, filtered and invalid, partition.
    """
    return (
        f"UPDATE {schema}._offsets SET next_offset = %s, max_event_time = %s, suspects = %s,"
        f" last_event_at = clock_timestamp(), freshness_ms = greatest(0, {CLOCK_MS} - %s),"
        " consumed = consumed + %s, filtered = filtered + %s,"
        f" invalid = invalid + %s WHERE reader = '{reader}' AND partition = %s"
    )


def times(schema: str, reader: str) -> str:
    """How far event time has come in each partition.

    Rows: partition, newest event time, suspects, when the last event came and when the end was met (epoch ms).
    """
    return (
        f"SELECT partition, max_event_time, suspects, {to_ms('last_event_at')}, {to_ms('end_confirmed_at')}"
        f" FROM {schema}._offsets WHERE reader = '{reader}'"
    )


def lock_next(schema: str) -> str:
    """Lock partitions of a reader, in their order.

    Parameters: reader, list of partitions. Rows: partition, next offset.
    """
    return (
        f"SELECT partition, next_offset FROM {schema}._offsets WHERE reader = %s AND partition = ANY(%s)"
        " ORDER BY partition FOR UPDATE"
    )


def live_next(schema: str, *, lock: bool = False) -> str:
    """Where live processors are in the topic that a replay reads; locked, if asked for.

    Parameters: the replay's reader, list of partitions. Rows: partition, next offset; none of partitions that live
    processors have not begun.
    """
    query = (
        f"SELECT l.partition, l.next_offset FROM {schema}._offsets l JOIN {schema}._offsets o"
        f" ON o.reader = %s AND o.partition = l.partition AND o.topic_id = l.topic_id WHERE l.reader = '{LIVE}'"
        f" AND l.partition = ANY(%s) AND l.next_offset IS NOT NULL ORDER BY l.partition"
    )
    return query + (" FOR UPDATE OF l" if lock else "")


def fed(schema: str) -> str:
    """Partitions whose live events count for all these versions. Parameter: list of ids. Rows: partition."""
    return f"SELECT partition FROM {schema}._offsets WHERE reader = '{LIVE}' AND feeds @> %s::integer[]"


def feed(schema: str) -> str:
    """Let live events count for versions, too. Parameters: list of ids, list of partitions, list of ids."""
    return (
        f"UPDATE {schema}._offsets SET feeds = feeds || %s::integer[]"
        f" WHERE reader = '{LIVE}' AND partition = ANY(%s) AND NOT feeds @> %s::integer[]"
    )


def progress(schema: str) -> str:
    """What a reader has counted, in the order of partitions.

    Parameter: reader. Rows: partition, epoch, next offset, newest event time, numbers of records consumed, filtered and
    invalid, when the last event came and when the end was met.
    """
    return (
        "SELECT partition, epoch, next_offset, max_event_time, consumed, filtered, invalid, last_event_at,"
        f" end_confirmed_at FROM {schema}._offsets WHERE reader = %s ORDER BY partition"
    )


def lose(schema: str, reader: str) -> str:
    """Note a loss once. Parameters: partition, epoch, first offset, end (null: not known), reason."""
    return (
        f"INSERT INTO {schema}._lost (reader, partition, epoch, from_offset, to_offset, reason)"
        f" VALUES ('{reader}', %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING"
    )


LOSSES = ("partition", "epoch", "from_offset", "to_offset", "reason")
"""Columns of `losses`."""


def losses(schema: str) -> str:
    """The first 100 losses of a reader. Parameter: reader. Rows: `LOSSES`."""
    return (
        f"SELECT {', '.join(LOSSES)} FROM {schema}._lost WHERE reader = %s"
        " ORDER BY partition, epoch, from_offset LIMIT 100"
    )
