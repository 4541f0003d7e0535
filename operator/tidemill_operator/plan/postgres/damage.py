"""Pure: what of a pipeline's tables somebody else has taken away, as the rest of its schema tells.

It is told like a source topic that is gone, and made anew, empty, only on request: by the same annotation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.model import LiveSchema, Schema

_MOST = 8
# What each schema has had from the first version on, with what goes if it is dropped.
_SYSTEM = {
    "_aggregations": "which windows are final, and which versions there are",
    "_offsets": "up to where events are counted",
    "_readers": "how far time has come",
    "_dead_letters": "the events that were refused",
    "_anomalies": "the anomalies that were found",
    "_detectors": "what detectors have learned",
}
_POSITIONS = (
    "; events that the topic still holds are then counted once more: `tidemill replay` after it counts all windows anew"
)


def damage(schema: Schema, live: LiveSchema | None) -> tuple[str, ...]:
    """What is gone, in words; nothing of a schema that no spec was accepted for.

    Args:
        schema: the plan's.
        live: what is there.
    """
    if live is None or not live.accepted:
        return ()
    return (*_system(live), *_windows(schema, live))


def bereaved(schema: Schema, live: LiveSchema | None) -> Schema:
    """The schema, with a note of what is gone: it is not made anew unasked."""
    return replace(schema, lost=damage(schema, live))


def damaged(schema: Schema) -> TidemillError:
    """Why tables that were taken away behind our back are not made anew."""
    told = "; ".join(schema.lost[:_MOST]) + ("; and more" if len(schema.lost) > _MOST else "")
    windows = not any(text.startswith(("table _", "rows of table _")) for text in schema.lost)
    replay = ", or have its windows counted anew from the topic by `tidemill replay`" if windows else ""
    positions = _POSITIONS if any("table _offsets" in text for text in schema.lost) else ""
    return TidemillError(
        Reason.DATA_LOSS,
        f"schema {schema.name}: {told}",
        "put it back from a backup, or make it anew, empty, with the annotation tidemill.dev/recreate-topics: 'true'"
        f"{replay}{positions}",
    )


def _system(live: LiveSchema) -> Iterator[str]:
    for table, what in _SYSTEM.items():
        if table not in live.columns:
            yield f"table {table} is gone, and with it {what}"
    if "_aggregations" in live.columns and not live.shapes:
        yield f"rows of table _aggregations are gone, and with them {_SYSTEM['_aggregations']}"
    if "_offsets" in live.columns and live.missing_positions:
        some = ", ".join(map(str, live.missing_positions[:_MOST]))
        yield f"rows of table _offsets are gone (partitions {some}), and with them {_SYSTEM['_offsets']}"
    if (live.accepted or {}).get("events", {}).get("store") and "_events" not in live.columns:
        yield "table _events is gone, and with it the events that were kept"


def _windows(schema: Schema, live: LiveSchema) -> Iterator[str]:
    """Of the versions that are in force; one that is filled anew by a replay can be spared."""
    spared = {row.name for row in schema.aggregations if schema.replay and row.reader == schema.replay}
    for row in schema.aggregations:
        shape = live.shapes.get((row.name, row.version))
        if shape is None or row.name in spared:
            continue
        if row.table_name not in live.columns:
            yield f"table {row.table_name} is gone, and with it the windows of aggregation {row.name}"
            continue
        if (row.name, row.version) in live.emptied:
            yield f"table {row.table_name} was emptied, and the windows of aggregation {row.name} are gone"
        noted = json.loads(shape)
        wanted = [*(name for name, _ in noted["groupBy"]), "window_start", *noted["partials"]]
        gone = [column for column in wanted if column not in live.columns[row.table_name]]
        if gone:
            columns = "column" if len(gone) == 1 else "columns"
            yield (
                f"table {row.table_name} has lost its {columns} {', '.join(gone)}, and with it values of aggregation"
                f" {row.name}"
            )
