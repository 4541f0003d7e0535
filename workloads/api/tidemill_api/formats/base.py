"""What a format of answers is: a suffix, a media type, and a writer that streams rows."""

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
        """What comes before the first row."""

    def batch(self, rows: Sequence[Row]) -> bytes:
        """Some rows, as psycopg gives them, in the order of `columns`.

        Raises:
            Problem: the format has no way to write a value.
        """

    def tail(self) -> bytes:
        """What comes after the last row."""


WriterOf = Callable[[Sequence[Column], Converters], Writer]
"""Makes a writer of columns; converters, by column name, are used in place of the format's own."""


@dataclass(frozen=True)
class Format:
    """A format of answers.

    Attributes:
        name: what people call it.
        suffix: the end of a path that asks for it, without the dot.
        media_type: asks for it in an Accept header.
        description: for the reference page and the OpenAPI document; Markdown, whole sentences.
        writer: makes what streams an answer of any length; None: answers come in pages.
        aliases: further media types that ask for it.
        content_type: the header of answers; empty: the media type.
        schema: of the body, for the OpenAPI document.
        of_items: the body is one row after another, each with the schema of a row.
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
        """The Content-Type of answers."""
        return self.content_type or self.media_type
