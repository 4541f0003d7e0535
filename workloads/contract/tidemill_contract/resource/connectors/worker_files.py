"""The files of Connect's workers that no connector may read, because they contain logins and other pipelines' secrets.

A file connector could write such a file into the pipeline's topic, such as the worker's properties with its login.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from urllib.parse import unquote

FOLDERS = ("/etc/tidemill", "/proc", "/dev/fd", "/run/secrets", "/var/run/secrets")
"""The folders with the worker's own files. `/proc` and `/dev/fd` show its environment and its open files."""
# What separates paths from other parts of a value, as in `jdbc:sqlite:/a`, `file:///a?b=/c` and lists.
_SEPARATORS = re.compile(r"[\s,;:=?&|\"'()<>\[\]{}]+")


def worker_folder(value: str) -> str | None:
    """Return the folder with a worker's own files to which a config's value refers, or None if there is no such folder.

    Paths are normalised (`/x/../proc`). A relative path counts as one from the root, which is usually the worker's
    working directory.
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
