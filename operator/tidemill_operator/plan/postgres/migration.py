"""Convert stored facts about window tables from the format of earlier Tidemill versions.

For example, an earlier version used the column name `_first_at_x` for two different purposes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from pydantic import ValidationError

from tidemill_contract import names
from tidemill_contract.expressions.compiler import ExpressionError, derived_types
from tidemill_contract.functions.fill_history import FillHistory
from tidemill_contract.functions.partials import Kind, column_name, field_types
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_operator.plan.live import LiveSchema

_READ_TWO_WAYS = re.compile(r"_(first|last)_(at_.+)")
_ORDER = "bigint[]"


def with_current_names(live: LiveSchema) -> LiveSchema:
    """Return the schema with current column names. `renames` lists columns whose name in Postgres is outdated."""
    renames = {}
    columns, shapes, histories = dict(live.columns), dict(live.shapes), dict(live.fill_histories)
    types = _accepted_types(live.accepted) if any("types" not in json.loads(text) for text in shapes.values()) else {}
    for key, text in live.shapes.items():
        table = names.window_table(*key)
        table_columns = columns.get(table, {})
        if new_names := _renames(table_columns):
            renames[table] = new_names
            table_columns = columns[table] = {new_names.get(name, name): kind for name, kind in table_columns.items()}
            history = histories.get(key, FillHistory())
            histories[key] = replace(
                history, columns={new_names.get(name, name): feed for name, feed in history.columns.items()}
            )
        shape = json.loads(text)
        if new_names:
            shape["partials"] = [new_names.get(name, name) for name in shape["partials"]]
        if "types" not in shape:
            shape["types"] = _types_of(table_columns, types)
        shapes[key] = json.dumps(shape, sort_keys=True)
    return replace(live, columns=columns, shapes=shapes, fill_histories=histories, renames=renames)


def with_types_of(shape: str, before: str | None) -> str:
    """Return `shape`, with column types from `before` where `shape` has no type for a column."""
    if before is None:
        return shape
    parsed = json.loads(shape)
    parsed["types"] = {**json.loads(before).get("types", {}), **parsed["types"]}
    return json.dumps(parsed, sort_keys=True)


def _renames(columns: Mapping[str, str]) -> dict[str, str]:
    new_names = {}
    for name, kind in columns.items():
        match = _READ_TWO_WAYS.fullmatch(name)
        if match is None or kind == _ORDER:
            continue
        current_name = column_name("first" if match.group(1) == "first" else "last", match.group(2))
        if current_name not in columns:
            new_names[name] = current_name
    return new_names


def _types_of(columns: Mapping[str, str], types: Mapping[str, str]) -> dict[str, list[str]]:
    wanted = {
        column_name(kind, field): [field, field_type] for field, field_type in types.items() for kind in get_args(Kind)
    }
    return {name: wanted[name] for name in columns if name in wanted}


def _accepted_types(accepted: Mapping[str, Any] | None) -> Mapping[str, str]:
    if accepted is None:
        return {}
    try:
        spec = PipelineSpec.model_validate(accepted)
        return field_types(spec, derived_types(spec))
    except (ValidationError, ExpressionError):  # the current version no longer accepts the spec
        return {}
