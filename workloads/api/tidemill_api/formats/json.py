"""Writes pages in JSON: names and types of columns, rows, and the next page's cursor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tidemill_api.formats.base import Format
from tidemill_api.query.selection import Column
from tidemill_contract.decimals import base_type, scale_of

JSON = "application/json"
FORMAT = Format(
    "JSON", "json", JSON,
    "The default format. An answer is a page of at most `limit` rows. `meta` has the names and types of the columns."
    " `data` has the rows as objects. `next_cursor` leads to the next page. Integers and decimals have all their"
    " digits. Decimals are texts, or numbers with `decimals=number`.",
)  # fmt: skip


def describe_columns(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Return the names and types of columns, and the scales of decimals."""
    return [{"name": column.name, **type_info(column.kind)} for column in columns]


def type_info(kind: str) -> dict[str, Any]:
    """Return the type of a column for JSON, with the scale of a decimal."""
    scale = scale_of(kind)
    return {"type": kind} if scale is None else {"type": base_type(kind), "scale": scale}


def page_body(
    columns: Sequence[Column], records: Sequence[dict[str, Any]], next_cursor: str | None, **further: Any
) -> bytes:
    """Return a page of rows as JSON. The arguments in `further` become members of the page."""
    return msgspec.json.encode({
        "meta": describe_columns(columns),
        "data": records,
        "next_cursor": next_cursor,
        "truncated": next_cursor is not None,
        **further,
    })  # fmt: skip
