"""The cluster's programs: their names, their folder, and the sources that they are built from."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "kube"
FOLDER = CACHE / "bin"
MODULE = Path(__file__).resolve().parent / "go"

# hack/kube/go/main.go selects its program by these names. Each name is a link to the same binary.
MULTI_CALL = "kube"
LINKS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kube-netpol",
    "kubectl",
    "etcd",
    "coredns",
)
HELM = "helm"
PAUSE = "pause"
NOT_BUILT = "the cluster's programs are not built: run `make kube` (about ten minutes the first time)"


class NotBuilt(RuntimeError):
    """The cluster's programs are missing, or were built from other sources."""

    def __init__(self) -> None:
        super().__init__(NOT_BUILT)


def find() -> Path | None:
    """Return the folder of the programs, or None if they are missing or were built from other sources."""
    complete = all((FOLDER / name).is_file() for name in (MULTI_CALL, *LINKS, HELM, PAUSE))
    return FOLDER if complete and built_from() == fingerprint() else None


def require() -> Path:
    """Return the folder of the programs.

    Raises:
        NotBuilt: The programs are missing, or were built from other sources.
    """
    folder = find()
    if folder is None:
        raise NotBuilt
    return folder


def kubernetes_version() -> str:
    """Return Kubernetes' version with its `v`, from go.mod."""
    version = re.search(r"^\tk8s\.io/kubernetes (v\S+)$", (MODULE / "go.mod").read_text(), re.MULTILINE)
    if version is None:
        raise ValueError(f"{MODULE / 'go.mod'} requires no k8s.io/kubernetes")
    return version[1]


def fingerprint() -> str:
    """Return a hash of the sources."""
    digest = hashlib.sha256()
    for path in [MODULE / "go.mod", MODULE / "go.sum", *sorted(MODULE.rglob("*.go"))]:
        digest.update(f"{path.relative_to(MODULE)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def built_from() -> str:
    """Return the fingerprint of the sources of the built programs, or an empty text if no programs are built."""
    stamp = stamp_file()
    return stamp.read_text().strip() if stamp.is_file() else ""


def stamp_file() -> Path:
    """Return the path of the file that contains the fingerprint of the built sources."""
    return FOLDER / ".built-from"
