"""Read files, pipes and devices with a limit on the size."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

MAX_FILE_BYTES = 16 * 1024 * 1024
"""The maximum size (in bytes) of files that Tidemill writes, and of files from Secrets and ConfigMaps."""
MAX_STATE_FILE_BYTES = 64 * 1024 * 1024
"""The maximum size (in bytes) of the local runtime's state file. The file grows with the number of pipelines."""


class FileTooLarge(OSError, ValueError):
    """The error for a file that is larger than the limit."""


def read_bytes(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """Return the content of a file, a pipe or a device, up to `limit` bytes.

    Raises:
        FileTooLarge: the content is larger than the limit.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_size > limit:
            raise _too_large(str(path), f"has {status.st_size:,} bytes", limit)
        return read_stream(file, str(path), limit)


def read_text(path: Path, limit: int = MAX_FILE_BYTES) -> str:
    """Return the content of a file as in `read_bytes`, decoded as UTF-8.

    Raises:
        FileTooLarge: the content is larger than the limit.
        OSError: the file cannot be read.
        UnicodeDecodeError: the content is not UTF-8.
    """
    return read_bytes(path, limit).decode()


def read_stream(stream: BinaryIO, name: str, limit: int) -> bytes:
    """Return the content of a stream, or raise FileTooLarge for more than `limit` bytes."""
    parts, left = [], limit + 1
    while left > 0 and (part := stream.read(min(left, 1024 * 1024))):
        parts.append(part)
        left -= len(part)
    if left <= 0:
        raise _too_large(name, f"has more than {limit:,} bytes", limit)
    return b"".join(parts)


def _too_large(name: str, size: str, limit: int) -> FileTooLarge:
    return FileTooLarge(errno.EFBIG, f"{size}; at most {limit:,} are allowed", name)
