"""Reads NDJSON, with one event per line, and JSON files with one array."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from tidemill_contract.events.fields import MAX_EVENT_BYTES
from tidemill_contract.events.members import JSON_ERRORS
from tidemill_operator.event_files.content import Content, EventFileError, decoding_error

MAX_ARRAY_BYTES = 256 * 1024 * 1024
"""Maximum size of a file with one JSON array. The whole file is read into memory."""
_UTF8 = ("utf-8", "utf-8-sig")
_BLANK = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"
_array_decoder = msgspec.json.Decoder(list[msgspec.Raw])


class NdjsonFile:
    """A file with one JSON object per line."""

    def __init__(self, content: Content, *, encoding: str | None = None) -> None:
        """Find the encoding, which is UTF-8 by default.

        Raises:
            EventFileError: the file is not text.
        """
        self._content = content
        self.encoding = _json_encoding(content, encoding)
        self.incomplete_line: int | None = None

    def lines(self, *, growing: bool = False) -> Iterator[tuple[int, bytes]]:
        """Yield the line number and the UTF-8 bytes of each line that is not blank.

        With `growing`, an incomplete last line is left out, because another program may still complete it.

        Raises:
            EventFileError: a line cannot be decoded.
        """
        if self.encoding in _UTF8:
            for number, line, ended in _binary_lines(self._content.stream):
                if growing and not ended and not _is_json(line):
                    self.incomplete_line = number
                else:
                    yield number, line
            return
        text = io.TextIOWrapper(self._content.stream, self.encoding, newline="\n")
        number = 0
        try:
            for number, decoded in enumerate(text, 1):
                if decoded.strip():
                    yield number, decoded.strip().encode()
        except UnicodeError as error:
            raise decoding_error(f"{self._content.name}, line {number + 1}", self.encoding, error) from None
        finally:
            text.detach()


def _json_encoding(content: Content, encoding: str | None) -> str:
    detected = content.resolve_encoding(encoding)
    # JSON is UTF-8 unless the user or the bytes say otherwise. Lines that are not UTF-8 are then broken events.
    return "utf-8" if encoding is None and detected == "cp1252" else detected


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line, type=msgspec.Raw)
    except JSON_ERRORS:
        return False
    return True


def _binary_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes, bool]]:
    """Yield the number and content of each line, except blank lines.

    The third value is True if the line ends with a line feed.
    """
    number, limit = 0, MAX_EVENT_BYTES + 1
    while line := stream.readline(limit):
        number += 1
        first_part = line
        while len(line) == limit and not line.endswith(b"\n"):
            line = stream.readline(limit)
        data = (first_part.removeprefix(_BOM) if number == 1 else first_part).strip(_BLANK)
        if data:
            yield number, data, line.endswith(b"\n")


class JsonFile:
    """A file with one JSON array of events, or with one event."""

    def __init__(self, content: Content, *, encoding: str | None = None) -> None:
        """Find the encoding, which is UTF-8 by default.

        Raises:
            EventFileError: the file is not text.
        """
        self._content = content
        self.encoding = _json_encoding(content, encoding)

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield the events, each on one line, with their positions in the array from 1.

        Raises:
            EventFileError: the file is too large, or is not JSON.
        """
        name = self._content.name
        body = self._content.stream.read(MAX_ARRAY_BYTES + 1)
        if len(body) > MAX_ARRAY_BYTES:
            remedy = f"write one event per line: jq -c '.[]' {name} > events.ndjson"
            raise EventFileError(f"{name}: an array of more than {MAX_ARRAY_BYTES >> 20} MiB; {remedy}")
        if self.encoding not in _UTF8:
            try:
                body = body.decode(self.encoding).encode()
            except UnicodeError as error:
                raise decoding_error(name, self.encoding, error) from None
        body = body.removeprefix(_BOM).strip(_BLANK)
        try:
            values = _array_decoder.decode(body) if body.startswith(b"[") else [msgspec.Raw(body)]
            for number, value in enumerate(values, 1):
                yield number, msgspec.json.format(bytes(value), indent=-1)
        except JSON_ERRORS as error:
            remedy = "write valid JSON, or one event per line in a file called .ndjson"
            raise EventFileError(f"{name}: is not JSON ({error}); {remedy}") from None
