"""Compute the columns that processors will fill in each version of an aggregation."""

from __future__ import annotations

import json

from tidemill_contract import names
from tidemill_contract.functions.fill_history import FillHistory
from tidemill_operator.plan.live import LiveSchema
from tidemill_operator.plan.model import Schema


def fill_histories_after(schema: Schema, live: LiveSchema) -> dict[tuple[str, int], FillHistory]:
    """Return the columns that processors fill, by aggregation and version."""
    wanted = {(row.name, row.version): _partials(row.shape) for row in schema.aggregations}
    return {
        key: live.fill_histories.get(key, FillHistory()).after_change(
            _partials(shape),
            wanted.get(key, ()),
            existing=live.columns.get(names.window_table(*key), {}),
            closed_until=live.closed_until.get(key),
        )
        for key, shape in live.shapes.items()
    }


def _partials(shape: str) -> tuple[str, ...]:
    return tuple(json.loads(shape)["partials"])
