"""Writes NDJSON, with one line of JSON for each row."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tidemill_api.formats.base import Converters, Format, Row
from tidemill_api.formats.rows import RowEncoder
from tidemill_api.query.selection import Column


class NdjsonWriter:
    """Writes each row as a JSON object on its own line."""

    def __init__(self, columns: Sequence[Column], converters: Converters | None = None) -> None:
        self.columns = columns
        self._encoder = RowEncoder(columns, converters)

    def head(self) -> bytes:
        """Return no bytes, because NDJSON has no header."""
        return b""

    def batch(self, rows: Sequence[Row]) -> bytes:
        """Return one line of JSON for each row."""
        return b"".join(msgspec.json.encode(self._encoder.record(row)) + b"\n" for row in rows)

    def tail(self) -> bytes:
        """Return no bytes, because NDJSON has no footer."""
        return b""


FORMAT = Format(
    "NDJSON", "ndjson", "application/x-ndjson",
    "Each row is a line with the same object as in `data` of a JSON answer.",
    NdjsonWriter,
    aliases=("application/ndjson",),
    has_item_schema=True,
)  # fmt: skip
