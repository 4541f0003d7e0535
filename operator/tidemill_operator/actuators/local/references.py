"""Finds the folders that stand for the users' Secrets and ConfigMaps on a laptop."""

from __future__ import annotations

import json
from pathlib import Path

from tidemill_operator.plan.model import Workload


class References:
    """The folders of Secrets and ConfigMaps.

    Args:
        root: the folder of the Secrets, `<namespace>/<secret>/<key>`.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[str, Path] = {}

    def secret(self, namespace: str, name: str) -> Path:
        """Return the folder of a Secret, which has a file for each key."""
        return self._root / namespace / name

    def place(self, pipeline: str, folder: Path) -> None:
        """Set the folder of the file of a pipeline `namespace/name`. It has the files of the pipeline's ConfigMaps."""
        self._folders[pipeline] = folder

    def lookup_dirs(self, workload: Workload) -> str:
        """Return the folder of each of a workload's lookups, as the variable TIDEMILL_LOOKUP_DIRS has them."""
        beside = self._folders.get(f"{workload.namespace}/{workload.pipeline}", self._root)
        folders = {
            name: self.secret(workload.namespace, reference.name) if reference.kind == "secret" else beside
            for name, reference in workload.lookups.items()
        }
        return json.dumps({name: str(folder) for name, folder in folders.items()}, sort_keys=True)
