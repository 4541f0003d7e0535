"""The images, their source files, and the tag that identifies the content of these files."""

from __future__ import annotations

import hashlib
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "images"


@dataclass(frozen=True)
class Image:
    """One image.

    Attributes:
        name: The image's repository, e.g. `tidemill/ingest`.
        dockerfile: The path of the Dockerfile below the repository's root.
        sources: The files and folders that determine the image's content, as paths below the repository's root.
    """

    name: str
    dockerfile: str
    sources: tuple[str, ...]


_SHARED = ("hack/images/install.py", "hack/requirements/bootstrap.txt", "workloads/contract", "workloads/chassis")


def _own(name: str, folder: str) -> Image:
    return Image(f"tidemill/{name}", f"{folder}/Dockerfile", (*_SHARED, folder))


def _development(name: str, *further: str) -> Image:
    return Image(f"tidemill-dev/{name}", f"hack/images/{name}/Dockerfile", (f"hack/images/{name}", *further))


_WORKLOADS = ("ingest", "processor", "api")
TIDEMILL = (_own("operator", "operator"), *(_own(name, f"workloads/{name}") for name in _WORKLOADS))
# `tidemill up` in a container, for docker-compose.yaml. It is built only with `--only local`.
LOCAL = Image(
    "tidemill/local",
    "hack/images/local/Dockerfile",
    (*_SHARED, "hack/images/local", "config/resilience.yaml", "operator", *(f"workloads/{n}" for n in _WORKLOADS)),
)
# Kafka Connect with plugins, for the chart's value connect.image. It is built only with `--only connect`.
CONNECT = Image(
    "tidemill/connect",
    "hack/images/connect/Dockerfile",
    (
        "hack/images/connect",
        *(f"operator/tidemill_operator/laptop/servers/{name}" for name in ("connect-pom.xml", "connect_jars.py")),
        "operator/tidemill_operator/laptop/servers/kafka_jars.py",
    ),
)
DEVELOPMENT = (
    _development("kafka", "operator/tidemill_operator/laptop/servers/kafka_jars.py"),
    _development("postgres"),
    _development("redis"),
    _development("prometheus"),
)


def version() -> str:
    """Return the version of the platform."""
    return str(tomllib.loads((ROOT / "operator" / "pyproject.toml").read_text())["project"]["version"])


def revision() -> str:
    """Return the current commit, for the label of images."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def content_tag(images: tuple[Image, ...], *, also: str = "") -> str:
    """Return the tag `<version>-<hash>`, with a hash of the images' sources. Unchanged sources keep their tag.

    Args:
        images: The images that share the tag.
        also: Other inputs of the hash, e.g. the base image.
    """
    digest = hashlib.sha256(also.encode())
    for source in sorted({source for image in images for source in image.sources}):
        for path in _files(ROOT / source):
            digest.update(f"{path.relative_to(ROOT)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{version()}-{digest.hexdigest()[:12]}"


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for file in sorted(path.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".pyc":
            yield file
