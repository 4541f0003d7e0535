"""The definition of a format of answers. A format has a suffix, a media type, and a writer that streams rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tidemill_api.query.selection import Column

Row = Sequence[Any]
Converters = Mapping[str, Callable[[Any], Any]]


class Writer(Protocol):
    """Writes one answer, batch by batch."""

    columns: Sequence[Column]

    def head(self) -> bytes:
        """Return the bytes before the first row."""

    def batch(self, rows: Sequence[Row]) -> bytes:
        """Return the bytes of some rows.

        Args:
            rows: the rows from psycopg, with values in the order of `columns`.

        Raises:
            Problem: the format cannot express a value.
        """

    def tail(self) -> bytes:
        """Return the bytes after the last row."""


WriterOf = Callable[[Sequence[Column], Converters], Writer]
"""A function that creates the writer for some columns. The function also gets converters by column name, which replace
the converters of the format."""


@dataclass(frozen=True)
class Format:
    """A format of answers.

    Attributes:
        name: the format's name, as messages and pages show it.
        suffix: the suffix of paths in this format, without the dot.
        media_type: the media type in Accept headers.
        description: the description in Markdown, for the reference page and the OpenAPI document.
        writer: the function that creates the writer of a streamed answer, or None if answers are pages.
        aliases: further media types of the format.
        content_type: the Content-Type header of answers, or an empty text if it is the media type.
        schema: the schema of the body, for the OpenAPI document.
        of_items: whether the body is a sequence of rows, such as lines. The OpenAPI document then describes one row
            (`itemSchema`), not the whole body.
    """

    name: str
    suffix: str
    media_type: str
    description: str
    writer: WriterOf | None = None
    aliases: tuple[str, ...] = ()
    content_type: str = ""
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})
    of_items: bool = False

    @property
    def header(self) -> str:
        """The Content-Type header of answers."""
        return self.content_type or self.media_type
