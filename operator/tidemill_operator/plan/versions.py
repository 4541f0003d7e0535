"""Compute each aggregation's version in use, and the version filled by a replay.

A change of window, groups or field types creates a new version with its own table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tidemill_contract import names
from tidemill_contract.expressions.compiler import derived_types
from tidemill_contract.functions.partials import build_layout, field_types
from tidemill_contract.resource.kinds.windows import WINDOWS
from tidemill_contract.resource.spec import AggregationSpec, PipelineSpec
from tidemill_contract.tables.definition import Column
from tidemill_contract.tables.windows import window_table
from tidemill_operator.plan.live import LiveSchema
from tidemill_operator.plan.postgres.schema import column_type, shape_of

LIVE = "live"
_BOUNDARY_SETTINGS = [str(field.alias) for name, field in WINDOWS.flat_model.model_fields.items() if name != "grace"]
"""The settings in `window` for the start and end of windows: all except `grace`."""


def current_version(name: str, live: LiveSchema | None) -> int | None:
    """Return the version of an aggregation that the API reads, or None."""
    versions = (
        [v for (aggregation, v) in live.shapes if aggregation == name and _reader(live, name, v) == LIVE]
        if live
        else []
    )
    return max(versions, default=None)


def next_version(name: str, live: LiveSchema | None) -> int:
    """Return the next unused version number."""
    return max((version for aggregation, version in live.shapes if aggregation == name), default=0) + 1 if live else 1


def versions_filled(reader: str, live: LiveSchema | None) -> dict[str, int]:
    """Return the versions that a replay fills, by aggregation."""
    shapes = live.shapes if live else {}
    return {name: version for name, version in shapes if live and _reader(live, name, version) == reader}


def live_versions(spec: PipelineSpec, live: LiveSchema | None) -> dict[str, int]:
    """Return the version of each aggregation. An aggregation whose shape has changed gets the next version."""
    types = field_types(spec, derived_types(spec))
    versions = {}
    for aggregation in spec.aggregations:
        present = current_version(aggregation.name, live)
        if present is None or (live and _differs(aggregation, types, present, live)):
            present = next_version(aggregation.name, live)
        versions[aggregation.name] = present
    return versions


def shape_changes(before: str, after: str) -> Iterator[tuple[str, str, str]]:
    """Yield the differences of two shapes that require a new version, each as (member, before, after)."""
    shapes = json.loads(before), json.loads(after)
    old, new = map(_layout, shapes)
    for member in old:
        if old[member] != new[member]:
            yield member, _show(old[member]), _show(new[member])
    # If a field's type changes, its new values cannot be merged with stored values.
    was, now = (shape.get("types", {}) for shape in shapes)
    changed = {tuple(now[name]): was[name][1] for name in now if name in was and was[name][1] != now[name][1]}
    for (field, kind), earlier in changed.items():
        yield f"field {field}", earlier, kind


def type_changes(columns: tuple[Column, ...], live_types: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return the existing columns that have a different type, each as (name, before, after)."""
    types = [(column.name, column_type(column.definition)) for column in columns]
    return [(name, live_types[name], kind) for name, kind in types if live_types.get(name, kind) != kind]


def _reader(live: LiveSchema, name: str, version: int) -> str:
    return live.readers.get((name, version), LIVE)


def _differs(aggregation: AggregationSpec, types: Mapping[str, Any], version: int, live: LiveSchema) -> bool:
    layout = build_layout(aggregation, dict(types))
    table = window_table(names.window_table(aggregation.name, version), layout)
    if any(shape_changes(live.shapes[aggregation.name, version], shape_of(aggregation, layout))):
        return True
    return bool(type_changes(table.columns, live.columns.get(table.name, {})))


def _layout(shape: dict[str, Any]) -> dict[str, Any]:
    window = shape["window"]
    return {
        "groupBy": shape["groupBy"],
        "window": {member: window.get(member) for member in _BOUNDARY_SETTINGS},
    }


def _show(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(f"{name} ({kind})" for name, kind in value) + "]"
    return " ".join(f"{member} {text}" for member, text in value.items() if text is not None)
