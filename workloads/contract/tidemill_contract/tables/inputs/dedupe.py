"""`_dedupe`: the ids that `spec.source.dedupe` remembers. Only pipelines with dedupe have this table.

`reader` separates the ids of the live processors from the ids of replays (see `ids` in `_aggregations`). The value is
`live`, or a new value for each start of a replay. A replay needs a separate value, because the replay counts earlier
events again. After a replay ends, its aggregation versions keep this value in `_aggregations.ids`.

`place` is the path of the id in a record, such as `order.id`. Ids from different places are never compared.

`id` is the event's id as text. An id of 64 bytes or more is stored as its SHA-256 in hex (exactly 64 bytes). The
elements of an array can share one id. In this case, the element's index and a space precede the id.

`event_time` is the time of the event that was counted (epoch ms). A row is deleted after the watermark has passed
`until` (epoch ms).
"""

from __future__ import annotations

from tidemill_contract.tables import aggregations, slots
from tidemill_contract.tables.definition import Table, columns
from tidemill_contract.tables.readers import LIVE

TABLE = Table(
    "_dedupe",
    columns(
        ("reader", "text NOT NULL"),
        ("place", "text NOT NULL"),
        ("id", 'text COLLATE "C" NOT NULL'),
        ("event_time", "bigint NOT NULL"),
        ("until", "bigint NOT NULL"),
    ),
    # Ids differ more often than the other columns. So the id is the first column of the primary key.
    ("PRIMARY KEY (id, place, reader, event_time)",),
    # Expired ids are deleted all the time, so autovacuum runs more often than by default.
    storage="autovacuum_vacuum_scale_factor = 0.05",
    indexes=(("_dedupe_by_end", "(reader, until)"),),
    # No row is updated, but SELECT FOR UPDATE needs the UPDATE privilege on at least one column.
    writer_privileges="SELECT, INSERT, UPDATE (until), DELETE",
)

_READER_AND_PLACE = "reader = %(reader)s AND place = %(place)s"


def exists(schema: str) -> str:
    """Select whether the table `_dedupe` exists."""
    return f"SELECT to_regclass('{schema}._dedupe') IS NOT NULL"


def stored_ids(schema: str) -> str:
    """Select which of the given ids are stored, and their event times.

    Without `OFFSET 0`, Postgres might read the whole table instead of the index.

    Parameters: reader, place, ids (an array as text), first and last event time (epoch ms). Columns: id, event time.
    """
    return (
        "SELECT d.id, d.event_time FROM unnest(%(ids)s::text[]) AS n (id) CROSS JOIN LATERAL"
        f" (SELECT id, event_time FROM {schema}._dedupe WHERE {_READER_AND_PLACE} AND id = n.id"
        " AND event_time BETWEEN %(first)s AND %(last)s OFFSET 0) AS d"
    )


def lock(schema_name: str) -> str:
    """Lock the ids of one `reader` until the end of the transaction.

    Args:
        schema_name: the schema's name, which must be valid in a string literal.

    Parameter: reader.
    """
    return f"SELECT pg_advisory_xact_lock(hashtext('{schema_name}/dedupe'), hashtext(%s))"


def insert_new(schema: str) -> str:
    """Store ids, except ids that are already stored within the window.

    If fewer rows than ids are stored, some ids were duplicates. Call `lock` before, in the same transaction.

    Parameters: `reader`, `place`, `ids` and `times` (arrays as text), `window` (ms), `reached` (the newest event time
    so far, in epoch ms), `follows` (the reader whose watermark delays expiry: `live`, or null for a replay).
    """
    return (
        f"INSERT INTO {schema}._dedupe (reader, place, id, event_time, until)"
        " SELECT %(reader)s, %(place)s, n.id, n.at, greatest(n.at, %(reached)s, w.watermark) + %(window)s"
        " FROM unnest(%(ids)s::text[], %(times)s::bigint[]) AS n (id, at)"
        # Event times of a partition that was idle may be older than the watermark. Without `w.watermark`, their ids
        # would expire immediately.
        f" LEFT JOIN {schema}._readers w ON w.reader = %(follows)s"
        f" WHERE NOT EXISTS (SELECT FROM {schema}._dedupe WHERE {_READER_AND_PLACE} AND id = n.id"
        " AND event_time BETWEEN n.at - %(window)s AND n.at + %(window)s OFFSET 0)"
    )


def progress(schema: str, *, multi_topic: bool = False) -> str:
    """Select each `reader` with stored ids, and the progress of replays.

    For a pipeline with a list of topics, `multi_topic` is true. The progress then omits partitions that processors no
    longer read. It always omits partitions that live processors have taken over from the replay.

    Columns: `reader`, whether the `reader` is in use, whether the `reader` has no running replay, the minimum of the
    newest event times of the replay's partitions (epoch ms), whether a partition has no event time yet.
    """
    active = f" AND {slots.active_condition(schema, 'o.partition')}" if multi_topic else ""
    return (
        f"WITH RECURSIVE names AS ((SELECT reader FROM {schema}._dedupe ORDER BY reader LIMIT 1) UNION ALL"
        f" SELECT (SELECT d.reader FROM {schema}._dedupe d WHERE d.reader > n.reader ORDER BY d.reader LIMIT 1)"
        " FROM names n WHERE n.reader IS NOT NULL),"
        f" used AS (SELECT {aggregations.DEDUPE_READER} AS name, array_agg(id) AS versions,"
        f" max(reader) FILTER (WHERE reader <> '{LIVE}') AS replay FROM {schema}._aggregations GROUP BY 1)"
        f" SELECT n.reader, n.reader = '{LIVE}' OR u.name IS NOT NULL, u.replay IS NULL, p.reached, p.unread"
        " FROM names n LEFT JOIN used u ON u.name = n.reader LEFT JOIN LATERAL"
        " (SELECT min(o.max_event_time) AS reached, bool_or(o.max_event_time IS NULL) AS unread"
        f" FROM {schema}._offsets o JOIN {schema}._offsets l ON l.reader = '{LIVE}' AND l.partition = o.partition"
        f" WHERE o.reader = u.replay AND NOT l.feeds @> u.versions{active}) p ON true"
        " WHERE n.reader IS NOT NULL"
    )


def delete_expired(schema: str, limit: int) -> str:
    """Delete up to `limit` expired rows of one `reader`, oldest first. Parameters: reader, watermark (epoch ms)."""
    return (
        f"DELETE FROM {schema}._dedupe WHERE ctid = ANY(ARRAY(SELECT ctid FROM {schema}._dedupe WHERE reader = %s"
        f" AND until < %s ORDER BY until LIMIT {limit} FOR UPDATE SKIP LOCKED))"
    )
