"""The definition of a format of answers, with its suffix, media type and writer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tidemill_api.query.selection import Column

Row = Sequence[Any]
Converters = Mapping[str, Callable[[Any], Any]]


class Writer(Protocol):
    """Writes one answer in batches of rows."""

    columns: Sequence[Column]

    def head(self) -> bytes:
        """Return the bytes before the first row."""

    def batch(self, rows: Sequence[Row]) -> bytes:
        """Return the bytes of the given rows.

        Raises:
            Problem: the format cannot express a value.
        """

    def tail(self) -> bytes:
        """Return the bytes after the last row."""


WriterFactory = Callable[[Sequence[Column], Converters], Writer]
"""A function that returns the writer of an answer. Its parameters are the columns and their converters."""


@dataclass(frozen=True)
class Format:
    """A format of answers.

    Attributes:
        suffix: the suffix of paths in this format, without the dot.
        writer_factory: the function that creates the writer of a streamed answer, or None if answers are pages.
        has_item_schema: whether the OpenAPI document describes one item (`itemSchema`), not the whole body.
    """

    name: str
    suffix: str
    media_type: str
    description: str
    writer_factory: WriterFactory | None = None
    aliases: tuple[str, ...] = ()
    content_type: str = ""
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})
    has_item_schema: bool = False

    @property
    def content_type_header(self) -> str:
        """The Content-Type header of answers."""
        return self.content_type or self.media_type
