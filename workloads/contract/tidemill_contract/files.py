"""Reading files whose size somebody else decides on: never more than a limit, whatever the name stands for."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

OWN_FILE = 16 * 1024 * 1024
"""Of files that Tidemill writes itself, or that a Secret or a ConfigMap holds (1 MiB at most there)."""
STATE_FILE = 64 * 1024 * 1024
"""Of the local runtime's memory, which grows with what runs."""


class FileTooLarge(OSError, ValueError):
    """A file holds more than is read of it."""


def read_bytes(path: Path, limit: int = OWN_FILE) -> bytes:
    """The content of a file, a pipe or a device, if it ends within the limit.

    Args:
        path: of the file.
        limit: bytes.

    Raises:
        FileTooLarge: it does not; nothing beyond the limit was read.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_size > limit:
            raise _too_large(str(path), f"{status.st_size:,} bytes are", limit)
        return read_stream(file, str(path), limit)


def read_text(path: Path, limit: int = OWN_FILE) -> str:
    """The same as UTF-8 text.

    Raises:
        FileTooLarge, OSError: as above.
        UnicodeDecodeError: it is none.
    """
    return read_bytes(path, limit).decode()


def read_stream(stream: BinaryIO, name: str, limit: int) -> bytes:
    """What comes from a stream until its end, if that is within the limit.

    Args:
        stream: as it is.
        name: for the message.
        limit: bytes.

    Raises:
        FileTooLarge: it is not.
    """
    parts, left = [], limit + 1
    while left > 0 and (part := stream.read(min(left, 1024 * 1024))):
        parts.append(part)
        left -= len(part)
    if left <= 0:
        raise _too_large(name, f"more than {limit:,} bytes are", limit)
    return b"".join(parts)


def _too_large(name: str, size: str, limit: int) -> FileTooLarge:
    return FileTooLarge(errno.EFBIG, f"{size} too many: at most {limit:,} are read of it", name)
