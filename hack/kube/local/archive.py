"""Writes an image archive without a container engine, and loads archives into containerd."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def write_image(archive: Path, name: str, *, files: Mapping[str, Path], entrypoint: Sequence[str]) -> Path:
    """Write an image with one layer, in the form of `docker save`.

    Args:
        archive: The file to write.
        name: The repository and the tag.
        files: The executables by their path in the image; the values are paths of this machine.
        entrypoint: The command that a container of the image runs.

    Returns:
        The archive.
    """
    layer = _tar({path: source.read_bytes() for path, source in files.items()}, mode=0o755)
    config = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": list(entrypoint), "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    members = {
        "layer.tar": layer,
        "config.json": json.dumps(config).encode(),
        "manifest.json": json.dumps(manifest).encode(),
    }
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(_tar(members, mode=0o644))
    return archive


def load(archive: Path, *, socket: Path) -> list[str]:
    """Load every image of an archive into the cluster's containerd.

    Returns:
        The names of the loaded images.

    Raises:
        RuntimeError: containerd refuses the archive. The message contains the output of containerd.
    """
    command = ["ctr", "--address", str(socket), "--namespace", "k8s.io", "images", "import", str(archive)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{archive} cannot be loaded: {done.stderr.strip()}")
    return [line.split()[1] for line in done.stdout.splitlines() if line.startswith("unpacking ")]


def _tar(members: Mapping[str, bytes], *, mode: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, data in members.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = len(data), mode
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
