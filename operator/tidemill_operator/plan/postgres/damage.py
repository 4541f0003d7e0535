"""Detect that another user has removed tables, columns or rows of a pipeline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.live import LiveSchema
from tidemill_operator.plan.model import Schema

_MAX_LISTED = 8
# The tables that every schema has, with descriptions of their data.
_SYSTEM = {
    "_aggregations": "the versions of aggregations, and the times up to which windows are closed",
    "_offsets": "the positions up to which events are counted",
    "_readers": "the watermark",
    "_dead_letters": "the dead letters",
    "_anomalies": "the anomalies",
    "_detectors": "the detectors' states",
}
_POSITIONS = "; afterwards run `tidemill replay`, because events that are still in the topic are counted twice"


def find_damage(schema: Schema, live: LiveSchema | None) -> tuple[str, ...]:
    """Return descriptions of the removed objects. Without an accepted spec, no object is reported."""
    if live is None or not live.accepted:
        return ()
    return (*_lost_system_tables(live), *_lost_windows(schema, live))


def mark_damage(schema: Schema, live: LiveSchema | None) -> Schema:
    """Return the plan's schema. `lost` describes what another user removed from the live schema."""
    return replace(schema, lost=find_damage(schema, live))


def damage_error(schema: Schema) -> TidemillError:
    """Return the error for removed tables."""
    lost = "; ".join(schema.lost[:_MAX_LISTED]) + ("; and more" if len(schema.lost) > _MAX_LISTED else "")
    windows = not any(text.startswith(("table _", "rows of table _")) for text in schema.lost)
    replay = ", or count the windows again from the topic with `tidemill replay`" if windows else ""
    positions = _POSITIONS if any("table _offsets" in text for text in schema.lost) else ""
    return TidemillError(
        Reason.DATA_LOSS,
        f"schema {schema.name}: {lost}",
        "restore the data from a backup, or set the annotation tidemill.dev/recreate-topics: 'true' to start"
        " without the data"
        f"{replay}{positions}",
    )


def _lost_system_tables(live: LiveSchema) -> Iterator[str]:
    for table, what in _SYSTEM.items():
        if table not in live.columns:
            yield f"table {table} is gone, and with it {what}"
    if "_aggregations" in live.columns and not live.shapes:
        yield f"rows of table _aggregations are gone, and with them {_SYSTEM['_aggregations']}"
    if "_offsets" in live.columns and live.missing_positions:
        partitions = ", ".join(map(str, live.missing_positions[:_MAX_LISTED]))
        yield f"rows of table _offsets are gone (partitions {partitions}), and with them {_SYSTEM['_offsets']}"
    if (live.accepted or {}).get("source", {}).get("topics") is not None:
        yield from _lost_slots(live)
    if (live.accepted or {}).get("events", {}).get("store") and "_events" not in live.columns:
        yield "table _events is gone, and with it the events that were kept"


def _lost_slots(live: LiveSchema) -> Iterator[str]:
    what = "the topic and the partition of each position in table _offsets"
    if "_slots" not in live.columns:
        yield f"table _slots is gone, and with it {what}"
    elif gone := sorted(set(range(live.partitions)) - {slot.number for slot in live.slots}):
        yield f"rows of table _slots are gone (slots {', '.join(map(str, gone[:_MAX_LISTED]))}), and with them {what}"


def _lost_windows(schema: Schema, live: LiveSchema) -> Iterator[str]:
    """Yield a description of each table with lost windows, unless a replay fills the table again."""
    replayed = {row.name for row in schema.aggregations if schema.replay and row.reader == schema.replay}
    for row in schema.aggregations:
        shape = live.shapes.get((row.name, row.version))
        if shape is None or row.name in replayed:
            continue
        if row.table_name not in live.columns:
            yield f"table {row.table_name} is gone, and with it the windows of aggregation {row.name}"
            continue
        if (row.name, row.version) in live.emptied:
            yield f"table {row.table_name} was emptied, and the windows of aggregation {row.name} are gone"
        stored_shape = json.loads(shape)
        wanted = [*(name for name, _ in stored_shape["groupBy"]), "window_start", *stored_shape["partials"]]
        missing = [column for column in wanted if column not in live.columns[row.table_name]]
        if missing:
            columns = "column" if len(missing) == 1 else "columns"
            yield (
                f"table {row.table_name} has lost its {columns} {', '.join(missing)}, and with it values of aggregation"
                f" {row.name}"
            )
