"""`_dedupe`: the ids that `spec.source.dedupe` remembers. Only pipelines with dedupe have this table.

- `reader`: the reader of the versions for which the event counted (see `_aggregations`). Versions that a replay fills
  have a separate memory, because the replay counts earlier events again.
- `place`: where the ids are in a record, such as `order.id`. Ids from different places are never compared.
- `id`: the id as text. An id of 64 bytes or more is stored as its SHA-256 in hex, which has exactly 64 bytes. If
  the elements of an array share the id of their record, the index of the element and a space precede the id.
- `event_time`: the time of the event that counted (epoch ms).
- `until`: the row is deleted once the watermark has passed this time (epoch ms).
"""

from __future__ import annotations

from tidemill_contract.tables import slots
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
    # The id is the first column of the key, because it decides most comparisons in the index.
    ("PRIMARY KEY (id, place, reader, event_time)",),
    # Each row is deleted in the end, so its space is needed for new rows soon.
    storage="autovacuum_vacuum_scale_factor = 0.05",
    indexes=(("_dedupe_by_end", "(reader, until)"),),
    # FOR UPDATE needs a privilege to update, although no row is ever updated.
    writer="SELECT, INSERT, UPDATE (until), DELETE",
)

_OF_MEMORY = "reader = %(reader)s AND place = %(place)s"


def exists(schema: str) -> str:
    """Select whether the table exists."""
    return f"SELECT to_regclass('{schema}._dedupe') IS NOT NULL"


def known(schema: str) -> str:
    """Select the remembered ids among a list of ids.

    `OFFSET 0` makes Postgres look up each id in the index. Otherwise it might read the whole table.

    Parameters: reader, place, ids (an array as text), first and last event time (epoch ms). Columns: id, event time.
    """
    return (
        "SELECT d.id, d.event_time FROM unnest(%(ids)s::text[]) AS n (id) CROSS JOIN LATERAL"
        f" (SELECT id, event_time FROM {schema}._dedupe WHERE {_OF_MEMORY} AND id = n.id"
        " AND event_time BETWEEN %(first)s AND %(last)s OFFSET 0) AS d"
    )


def lock(schema_name: str) -> str:
    """Lock the memory of a reader until the end of the transaction.

    Args:
        schema_name: the name of the schema as a part of a string literal.

    Parameter: reader.
    """
    return f"SELECT pg_advisory_xact_lock(hashtext('{schema_name}/dedupe'), hashtext(%s))"


def remember(schema: str) -> str:
    """Store ids, except those that are remembered with an event time within the window.

    The number of stored rows says whether all ids were new. The memory must be locked.

    Parameters: reader, place, ids and event times (arrays as text), window (ms), the newest event time reached (epoch
    ms).
    """
    return (
        f"INSERT INTO {schema}._dedupe (reader, place, id, event_time, until)"
        " SELECT %(reader)s, %(place)s, n.id, n.at, greatest(n.at, %(reached)s) + %(window)s"
        " FROM unnest(%(ids)s::text[], %(times)s::bigint[]) AS n (id, at)"
        f" WHERE NOT EXISTS (SELECT FROM {schema}._dedupe WHERE {_OF_MEMORY} AND id = n.id"
        " AND event_time BETWEEN n.at - %(window)s AND n.at + %(window)s OFFSET 0)"
    )


def progress(schema: str, *, several: bool = False) -> str:
    """Select how far the readers with remembered ids are.

    With `several`, the pipeline has a list of topics, and slots that are not read are left out.

    Columns: reader, whether it still exists, whether it follows the watermark (it is live, or its replay is complete),
    the earliest of the event times that its partitions have reached and not handed over (epoch ms), whether some of
    these partitions have not reached any event time.
    """
    reads = f" AND {slots.reads(schema, 'o.partition')}" if several else ""
    return (
        f"WITH RECURSIVE found AS ((SELECT reader FROM {schema}._dedupe ORDER BY reader LIMIT 1) UNION ALL"
        f" SELECT (SELECT d.reader FROM {schema}._dedupe d WHERE d.reader > f.reader ORDER BY d.reader LIMIT 1)"
        " FROM found f WHERE f.reader IS NOT NULL)"
        f" SELECT f.reader, r.reader IS NOT NULL, f.reader = '{LIVE}' OR r.switched_at IS NOT NULL, p.reached, p.unread"
        f" FROM found f LEFT JOIN {schema}._readers r ON r.reader = f.reader LEFT JOIN LATERAL"
        " (SELECT min(o.max_event_time) AS reached, bool_or(o.max_event_time IS NULL) AS unread"
        f" FROM {schema}._offsets o JOIN {schema}._offsets l ON l.reader = '{LIVE}' AND l.partition = o.partition"
        " WHERE o.reader = f.reader AND NOT l.feeds @>"
        f" (SELECT array_agg(a.id) FROM {schema}._aggregations a WHERE a.reader = f.reader){reads}) p ON true"
        " WHERE f.reader IS NOT NULL"
    )


def forget(schema: str, limit: int) -> str:
    """Delete up to `limit` rows of a reader, the earliest first. Parameters: reader, watermark (epoch ms)."""
    return (
        f"DELETE FROM {schema}._dedupe WHERE ctid = ANY(ARRAY(SELECT ctid FROM {schema}._dedupe WHERE reader = %s"
        f" AND until < %s ORDER BY until LIMIT {limit} FOR UPDATE SKIP LOCKED))"
    )
