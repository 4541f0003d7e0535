"""Writes kubeconfigs that contain the server's address, the trusted certificate and the client's certificate."""

from __future__ import annotations

import base64
from pathlib import Path

import yaml

from kube.pki import Authority, Pair
from tidemill_operator.processes.files import write_atomic


def write_kubeconfig(path: Path, *, server: str, authority: Authority, user: Pair, name: str = "tidemill") -> Path:
    """Write a client's configuration, readable by its owner only.

    Returns:
        The path.
    """
    cluster = {"server": server, "certificate-authority-data": _encoded(authority.certificate)}
    credentials = {"client-certificate-data": _encoded(user.certificate), "client-key-data": _encoded(user.key)}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": credentials}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }
    write_atomic(path, yaml.safe_dump(document, sort_keys=False), mode=0o600)
    return path


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")
