"""Finds the folders that replace Kubernetes Secrets and ConfigMaps on a laptop."""

from __future__ import annotations

import json
from pathlib import Path

from tidemill_operator.plan.model import Workload


class References:
    """The folders of Secrets, `<root>/<namespace>/<secret>/<key>`, and of ConfigMaps."""

    def __init__(self, root: Path, config_maps: Path) -> None:
        self.root, self._config_maps = root, config_maps
        self._fallbacks: dict[str, Path] = {}

    def secret(self, namespace: str, name: str) -> Path:
        """Return a Secret's folder."""
        return self.root / namespace / name

    def set_fallback(self, pipeline: str, folder: Path) -> None:
        """Set the fallback folder for a pipeline's ConfigMaps."""
        self._fallbacks[pipeline] = folder

    def config_map(self, workload: Workload, name: str) -> Path:
        """Return a ConfigMap's folder."""
        folder = self._config_maps / workload.namespace / name
        fallback = self._fallbacks.get(f"{workload.namespace}/{workload.pipeline}", folder)
        return folder if folder.is_dir() else fallback

    def environment(self, workload: Workload) -> dict[str, str]:
        """Return the environment variables that name the folders of a workload's Secrets and ConfigMaps."""
        secrets = {
            "TIDEMILL_REGISTRY_DIR": workload.registry_secret,
            "TIDEMILL_MQTT_DIR": workload.mqtt_secret,
            "TIDEMILL_SOURCE_KAFKA_DIR": workload.kafka_secret,
        }
        variables = {name: str(self.secret(workload.namespace, secret)) for name, secret in secrets.items() if secret}
        return {**variables, "TIDEMILL_LOOKUP_DIRS": self._lookup_dirs(workload)} if workload.lookups else variables

    def link(self, workload: Workload, secrets_root: Path) -> int:
        """Create symlinks from the pipeline's secrets to users' secrets, and return the number of changed links."""
        changed = 0
        for pipeline in workload.secrets if workload.secret_sources else ():
            folder = secrets_root / workload.namespace / pipeline
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for file, (secret, key) in workload.secret_sources.items():
                # With a symlink, a changed key takes effect at once.
                link, target = folder / file, (self.secret(workload.namespace, secret) / key).absolute()
                if not link.is_symlink() or link.readlink() != target:
                    link.unlink(missing_ok=True)
                    link.symlink_to(target)
                    changed += 1
        return changed

    def missing(self, workload: Workload) -> list[tuple[str, str]]:
        """Return the missing keys of a workload, as (Secret, key)."""
        return [
            (name, key)
            for name, key in workload.secret_sources.values()
            if not (self.secret(workload.namespace, name) / key).is_file()
        ]

    def _lookup_dirs(self, workload: Workload) -> str:
        folders = {
            name: self.secret(workload.namespace, reference.name)
            if reference.kind == "secret"
            else self.config_map(workload, reference.name)
            for name, reference in workload.lookups.items()
        }
        return json.dumps({name: str(folder) for name, folder in folders.items()}, sort_keys=True)
