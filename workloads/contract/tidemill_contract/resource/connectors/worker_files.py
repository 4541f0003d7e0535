"""The files of Connect's workers that no connector may read, because they contain logins and secrets."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from urllib.parse import unquote

FOLDERS = ("/etc/tidemill", "/proc", "/dev/fd", "/run/secrets", "/var/run/secrets")
"""The folders with private files of Connect's workers. `/proc` and `/dev/fd` show the environment and open files."""
# Matches characters that separate paths from other text, such as the colons in `jdbc:sqlite:/a`.
_SEPARATORS = re.compile(r"[\s,;:=?&|\"'()<>\[\]{}]+")


def worker_folder(value: str) -> str | None:
    """Return the folder of `FOLDERS` to which a path in `value` leads, or None.

    Relative paths are resolved from `/`.
    """
    for path in _paths(value):
        for folder in FOLDERS:
            if f"{path}/".startswith(f"{folder}/"):
                return folder
    return None


def _paths(value: str) -> Iterator[str]:
    for text in {value, unquote(value)}:
        for part in (text.strip(), *_SEPARATORS.split(text)):
            if "/" in part:
                yield posixpath.normpath("/" + part.lstrip("/"))
