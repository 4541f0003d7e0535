"""JSON: pages with the names and types of the columns, the rows as objects, and the cursor of the next page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tidemill_api.formats.base import Format
from tidemill_api.query.selection import Column

JSON = "application/json"
FORMAT = Format(
    "JSON", "json", JSON,
    "The default. An answer is a page of at most `limit` rows: `meta` has the names and types of the columns, `data`"
    " has the rows as objects, and `next_cursor` leads to the next page. Integers of any size have all their digits.",
)  # fmt: skip


def meta(columns: Sequence[Column]) -> list[dict[str, str]]:
    """Return the names and types of columns."""
    return [{"name": column.name, "type": column.kind} for column in columns]


def page_body(
    columns: Sequence[Column], records: Sequence[dict[str, Any]], next_cursor: str | None, **further: Any
) -> bytes:
    """Return the body of a page; `further` are more members."""
    return msgspec.json.encode({
        "meta": meta(columns),
        "data": records,
        "next_cursor": next_cursor,
        "truncated": next_cursor is not None,
        **further,
    })  # fmt: skip
