"""A pipeline with a field of each type, and the values that its transform derives from a row."""

from __future__ import annotations

import datetime as dt
from typing import Any

import polars as pl

from tidemill_contract.expressions.compiler import POLARS_TYPES, compile_transform
from tidemill_contract.resource.spec import PipelineSpec

TYPES = {"s": "string", "i": "integer", "j": "integer", "f": "number", "b": "boolean", "t": "timestamp"}
SCHEMA = {name: POLARS_TYPES[kind] for name, kind in TYPES.items()}
SUNDAY = dt.datetime(2013, 1, 6, 23, 59, 7, tzinfo=dt.UTC)
ROW: dict[str, Any] = {"s": "Abc", "i": -7, "j": 2, "f": 2.5, "b": True, "t": SUNDAY}
NOTHING: dict[str, Any] = dict.fromkeys(ROW)
BIG = 2**63 - 1


def spec(*derives: str, where: str | None = None) -> PipelineSpec:
    """Return a pipeline with these derives, `d0` and so on, and this filter."""
    return PipelineSpec.model_validate(
        {
            "source": {"fields": [{"name": name, "type": kind} for name, kind in TYPES.items()]},
            "transform": {
                "derive": [{"name": f"d{i}", "expression": e} for i, e in enumerate(derives)],
                "filter": where,
            },
            "aggregations": [
                {
                    "name": "a",
                    "window": {"type": "tumbling", "size": "1h"},
                    "metrics": [{"name": "n", "function": "count"}],
                }
            ],
        }
    )


def value(expression: str, **row: Any) -> Any:
    """Return the value of an expression for ROW with some members replaced."""
    frame = pl.DataFrame([ROW | row], schema=SCHEMA, orient="row")
    return compile_transform(spec(expression)).apply(frame)["d0"].item()
