"""Opens a file of events: unpacks gzip, and finds the encoding."""

from __future__ import annotations

import codecs
import gzip
import io
import sys
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

HEAD_BYTES = 1024 * 1024
"""Number of bytes of a file that are read to find its format."""
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_GZIP = b"\x1f\x8b"
_UNSUPPORTED_FORMATS = (
    (b"PK\x03\x04", "is an Excel workbook or a ZIP file: save the sheet as CSV, or unpack it"),
    (b"\xd0\xcf\x11\xe0", "is an old Excel workbook: save the sheet as CSV"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd: unpack it, or use gzip"),
    (b"BZh", "is compressed with bzip2: unpack it, or use gzip"),
    (b"\xfd7zXZ", "is compressed with xz: unpack it, or use gzip"),
    (b"Obj\x01", "is an Avro file: convert it to Parquet or NDJSON"),
    (b"ORC", "is an ORC file: convert it to Parquet"),
    (b"SQLite format 3", "is a SQLite database: export its table as CSV"),
    (b"%PDF", "is a PDF: events have to be CSV, NDJSON or Parquet"),
)
_WHITESPACE = frozenset(b"\t\n\r\f")
_MAX_CONTROL_SHARE = 0.002
"""Maximum share of control characters in a text."""
_MIN_ZERO_SHARE = 0.5
"""The minimum share of zeros among the high bytes of UTF-16. The high byte of every ASCII character is zero."""
_NEEDS_BOM = ("utf-16", "utf-32")


class EventFileError(Exception):
    """The error for an unreadable file of events, with the position and the remedy in its message."""


def decoding_error(where: str, encoding: str, error: UnicodeError) -> EventFileError:
    """Return the error for bytes that are not text in the encoding.

    Args:
        where: the name of the file, and the line if it is known.
        encoding: the name of the encoding.
        error: the error of the decoder.
    """
    return EventFileError(f"{where}: is not {encoding} ({error}); check --encoding")


class Content:
    """The unpacked bytes of a file or of the standard input."""

    def __init__(self, path: Path | None) -> None:
        """Open the file, or the standard input if `path` is None.

        Raises:
            EventFileError: the file cannot be read, or is empty.
        """
        self.name = str(path) if path is not None else "standard input"
        self.path = path
        self._raw: io.BufferedReader | None = None
        self.stream: BinaryIO
        self.head: bytes
        if path is None:
            self._open_pipe(sys.stdin.buffer)
        else:
            try:
                self._open(path)
            except (OSError, EOFError, zlib.error) as error:
                self.close()
                reason = getattr(error, "strerror", None) or str(error)
                raise EventFileError(f"{self.name}: cannot be read ({reason}); check the path and the file") from None
        self._size = path.stat().st_size if path is not None else 0
        if not self.head.strip():
            self.close()
            raise EventFileError(f"{self.name} is empty; name a file with at least one event")

    def _open(self, path: Path) -> None:
        self._raw = path.open("rb")
        if not self._raw.seekable():  # a named pipe
            self._open_pipe(self._raw)
            return
        is_gzip = self._raw.peek(2)[:2] == _GZIP
        self.stream = gzip.open(self._raw) if is_gzip else self._raw  # type: ignore[assignment]  # noqa: SIM115
        self.head = self.stream.read(HEAD_BYTES)
        self.stream.seek(0)

    def _open_pipe(self, source: Any) -> None:
        """Read the first bytes of a pipe, and make a stream that starts again with these bytes."""
        first = source.read1(HEAD_BYTES)
        rejoined: Any = _PrefixedStream(first, source)
        self.stream = io.BufferedReader(rejoined)
        self.head = first
        if first.startswith(_GZIP):
            unpacked: Any = gzip.GzipFile(fileobj=self.stream)
            self.head = unpacked.read1(HEAD_BYTES)
            rest: Any = _PrefixedStream(self.head, unpacked)
            self.stream = io.BufferedReader(rest)

    @property
    def fraction_read(self) -> float | None:
        """The share of the file already read, from 0 to 1, or None if unknown."""
        return min(1.0, self._raw.tell() / self._size) if self._raw is not None and self._size else None

    @property
    def is_longer_than_head(self) -> bool:
        """Whether the file may be longer than the bytes in `head`."""
        return not self._size or len(self.head) >= HEAD_BYTES

    def close(self) -> None:
        """Close the file."""
        if self._raw is not None:
            self._raw.close()

    @cached_property
    def _detected(self) -> str:
        """The detected encoding.

        The bytes may show UTF-16 or UTF-32. Other text is UTF-8 if valid, else cp1252.

        Raises:
            EventFileError: the file is not text.
        """
        for start, what in _UNSUPPORTED_FORMATS:
            if self.head.startswith(start):
                raise EventFileError(f"{self.name} {what}")
        for mark, encoding in _BOMS:
            if self.head.startswith(mark):
                return encoding
        if utf16 := _detect_utf16(self.head):
            return utf16
        control = sum(map(_is_control, self.head[:65536]))
        if control > _MAX_CONTROL_SHARE * min(len(self.head), 65536):
            at = next(i for i, byte in enumerate(self.head) if _is_control(byte))
            remedy = "if the file is text, name its encoding with --encoding; else convert it to CSV or NDJSON"
            raise EventFileError(f"{self.name} is binary: byte {at} is {self.head[at]:#04x}; {remedy}")
        try:
            codecs.getincrementaldecoder("utf-8")().decode(self.head)
        except UnicodeDecodeError:
            return "cp1252"
        return "utf-8"

    def resolve_encoding(self, encoding: str | None) -> str:
        """Return the name of `encoding`, or the detected encoding if `encoding` is None.

        Raises:
            EventFileError: there is no such encoding, the file lacks the byte order mark of UTF-16 or UTF-32, or the
                file is not text.
        """
        if encoding is None:
            return self._detected
        try:
            name = codecs.lookup(encoding).name
            b"\xff".decode(encoding, errors="replace")  # raises LookupError for non-text codecs, such as hex
        except (LookupError, ValueError):
            remedy = "write a text encoding that Python knows, such as utf-8, cp1252 or utf-16"
            raise EventFileError(f"--encoding {encoding}: there is no such encoding; {remedy}") from None
        if name in _NEEDS_BOM and not any(self.head.startswith(mark) for mark, each in _BOMS if each == name):
            remedy = f"write --encoding {name}-le or {name}-be, or leave --encoding out"
            raise EventFileError(f"--encoding {encoding}: {self.name} has no byte order mark; {remedy}")
        return name


def _detect_utf16(head: bytes) -> str | None:
    """Return "utf-16-le" or "utf-16-be", or None if `head` is not UTF-16 text.

    `head` has no byte order mark.
    """
    sample = head[:65536]
    low, high = sample[::2].count(0), sample[1::2].count(0)
    if max(low, high) < _MIN_ZERO_SHARE * (len(sample) / 2) or min(low, high) > _MAX_CONTROL_SHARE * len(sample):
        return None
    encoding = "utf-16-be" if low > high else "utf-16-le"
    text = sample.decode(encoding, errors="replace")
    control = sum(_is_control(ord(character)) for character in text)
    return encoding if control <= _MAX_CONTROL_SHARE * len(text) else None


def _is_control(code: int) -> bool:
    return code < 32 and code not in _WHITESPACE


class _PrefixedStream(io.RawIOBase):
    """A stream that returns `first`, and then the bytes of the stream `rest`."""

    def __init__(self, first: bytes, rest: Any) -> None:
        self._first, self._rest = first, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        part = self._first[: len(buffer)] or self._rest.read1(len(buffer))
        self._first = self._first[len(part) :]
        buffer[: len(part)] = part
        return len(part)
