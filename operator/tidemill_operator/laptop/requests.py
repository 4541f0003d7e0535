"""Passes requests from commands to a running `up`, as annotations of pipelines."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

from tidemill_contract.files import read_text
from tidemill_operator.processes.files import write_atomic


class Requests:
    """The annotations that commands request, stored in `<folder>/<namespace>/<name>.json`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, namespace: str, name: str) -> Mapping[str, str]:
        """Return the annotations that commands have requested for a pipeline."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            requested = json.loads(read_text(self._path(namespace, name)))
            return {str(key): str(value) for key, value in requested.items()}
        return {}

    def write(self, namespace: str, name: str, annotation: str, value: str | None) -> None:
        """Set a requested annotation, or remove it if the value is None."""
        requested = {key: text for key, text in self.read(namespace, name).items() if key != annotation}
        if value is not None:
            requested[annotation] = value
        write_atomic(self._path(namespace, name), json.dumps(requested, indent=1))

    def forget(self, namespace: str, name: str) -> None:
        """Remove the requests of a deleted pipeline."""
        self._path(namespace, name).unlink(missing_ok=True)

    def _path(self, namespace: str, name: str) -> Path:
        return self._folder / namespace / f"{name}.json"
