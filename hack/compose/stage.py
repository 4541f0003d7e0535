"""Maps host names, ports and paths of containers to addresses, ports and paths of this machine.

Each service has its own loopback address, and so can use the ports of the compose file. In commands, variables and
mounted files, host names become addresses, and paths of containers become paths below one folder.
"""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from compose.files import Service
from tidemill_operator.processes.ports import Ports

_ITSELF = re.compile(r"(?<![\w.-])(localhost|127\.0\.0\.1)(?![\w.-])")
_ANY_ADDRESS = re.compile(r"(?<=://)(?=:\d)")


@dataclass(frozen=True)
class Stage:
    """The folder and the addresses of one run.

    Attributes:
        root: The folder of the compose file. Paths in the file are relative to it.
        folder: The folder of all files of the run.
        addresses: The address of each service, by the service's name.
        ports: The replacements for ports of Tidemill, which listens on all addresses. Other programs may use the
            original ports.
    """

    root: Path
    folder: Path
    addresses: Mapping[str, str]
    ports: Mapping[int, int]

    @classmethod
    def of(cls, services: Mapping[str, Service], root: Path, folder: Path) -> Stage:
        """Return a stage with addresses that other runs are unlikely to use."""
        net = f"127.{random.randrange(16, 250)}.{random.randrange(1, 250)}"
        addresses = {name: f"{net}.{number}" for number, name in enumerate(services, 2)}
        free = Ports(folder / "ports.json")
        ports = {port: free.get(str(port)) for port in services["tidemill"].ports} if "tidemill" in services else {}
        return cls(root, folder, addresses, ports)

    def home(self, service: Service) -> Path:
        """Return the folder of files that only this service uses."""
        return self.folder / service.name

    def path(self, service: Service, target: str) -> Path:
        """Return the path on this machine that replaces a path of the container."""
        for mount in sorted(service.mounts, key=lambda mount: -len(mount.target)):
            inside = os.path.relpath(target, mount.target)
            if not inside.startswith(".."):
                at = self._mount_path(service, mount.source, mount.target)
                return at if inside == "." else at / inside
        return self.home(service) / target.lstrip("/")

    def _mount_path(self, service: Service, source: str, target: str) -> Path:
        named = not source.startswith((".", "/", "~"))
        return self.folder / "volumes" / source if named else self.home(service) / target.lstrip("/")

    def text(self, service: Service, text: str) -> str:
        """Replace host names and paths of the container in a text."""
        own = self.addresses[service.name]
        text = _ANY_ADDRESS.sub(own, _ITSELF.sub(own, text))
        for name, address in self.addresses.items():
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?=:\d)", address, text)
        for port, free_port in self.ports.items():
            text = re.sub(rf"\b{port}\b", str(free_port), text)
        for target in sorted(self._container_paths(service), key=len, reverse=True):
            pattern = rf"(?<![\w./-]){re.escape(target)}(?![\w-])"
            text = re.sub(pattern, str(self.path(service, target)).replace("\\", r"\\"), text)
        return text

    def _container_paths(self, service: Service) -> set[str]:
        """Return the paths of mounts, and the folder of each mounted file, because patterns name the folder."""
        targets = {mount.target for mount in service.mounts}
        files = {mount.target for mount in service.mounts if (self.root / mount.source).is_file()}
        return targets | {str(PurePosixPath(target).parent) for target in files}

    def prepare(self, service: Service) -> None:
        """Create the folders of volumes, and adapted copies of mounted files.

        Raises:
            FileNotFoundError: A mounted path does not exist. Docker would create an empty folder instead.
        """
        self.home(service).mkdir(parents=True, exist_ok=True)
        for mount in service.mounts:
            at = self.path(service, mount.target)
            if mount.is_volume:
                at.mkdir(parents=True, exist_ok=True)
                continue
            source = (self.root / mount.source).resolve(strict=True)
            at.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, at, dirs_exist_ok=True)
            else:
                shutil.copy(source, at)
            for file in at.rglob("*") if at.is_dir() else [at]:
                if file.suffix in (".yaml", ".yml", ".conf", ".ini"):
                    file.write_text(self.text(service, file.read_text()))
