"""JSON: pages with names and types of the columns, the rows as objects, and where they go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tidemill_api.formats.base import Format
from tidemill_api.query.selection import Column

JSON = "application/json"
FORMAT = Format(
    "JSON", "json", JSON,
    "The default. It comes in pages of at most `limit` rows: names and types of the columns as `meta`, the rows as"
    " objects in `data`, and `next_cursor`. Integers of any size are written with all their digits.",
)  # fmt: skip


def meta(columns: Sequence[Column]) -> list[dict[str, str]]:
    """Names and types of the columns."""
    return [{"name": column.name, "type": column.kind} for column in columns]


def page_body(
    columns: Sequence[Column], records: Sequence[dict[str, Any]], next_cursor: str | None, **further: Any
) -> bytes:
    """The body of a page."""
    return msgspec.json.encode({
        "meta": meta(columns),
        "data": records,
        "next_cursor": next_cursor,
        "truncated": next_cursor is not None,
        **further,
    })  # fmt: skip
