"""Finds the folders that stand for the users' Secrets and ConfigMaps on a laptop."""

from __future__ import annotations

import json
from pathlib import Path

from tidemill_operator.plan.model import Workload


class References:
    """The folders of Secrets and ConfigMaps.

    Attributes:
        root: the folder of the Secrets, `<namespace>/<secret>/<key>`.

    Args:
        maps: the folder of the ConfigMaps, `<namespace>/<ConfigMap>/<file>`.
    """

    def __init__(self, root: Path, maps: Path) -> None:
        self.root, self._maps = root, maps
        self._folders: dict[str, Path] = {}

    def secret(self, namespace: str, name: str) -> Path:
        """Return the folder of a Secret, which has a file for each key."""
        return self.root / namespace / name

    def place(self, pipeline: str, folder: Path) -> None:
        """Set the folder of the file of a pipeline `namespace/name`.

        It has the files of those of the pipeline's ConfigMaps that have no folder of their own.
        """
        self._folders[pipeline] = folder

    def config_map(self, workload: Workload, name: str) -> Path:
        """Return the folder with the files of a ConfigMap of a workload's pipeline."""
        folder = self._maps / workload.namespace / name
        beside = self._folders.get(f"{workload.namespace}/{workload.pipeline}", folder)
        return folder if folder.is_dir() else beside

    def lookup_dirs(self, workload: Workload) -> str:
        """Return the folder of each of a workload's lookups, as the variable TIDEMILL_LOOKUP_DIRS has them."""
        folders = {
            name: self.secret(workload.namespace, reference.name)
            if reference.kind == "secret"
            else self.config_map(workload, reference.name)
            for name, reference in workload.lookups.items()
        }
        return json.dumps({name: str(folder) for name, folder in folders.items()}, sort_keys=True)
