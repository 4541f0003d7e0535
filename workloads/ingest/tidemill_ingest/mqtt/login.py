"""Reads the credentials of an MQTT broker from the files of a Secret, again for each connection."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from tidemill_contract.files import read_text

USERNAME, PASSWORD, CA, CERTIFICATE, KEY = "username", "password", "ca.crt", "tls.crt", "tls.key"
"""The optional keys of the Secret, as in Kubernetes' Secret types `basic-auth` and `tls`."""


@dataclass(frozen=True)
class Login:
    """The credentials of an MQTT broker. Credentials that are not set are None."""

    username: str | None
    password: str | None
    context: ssl.SSLContext | None


def read_login(folder: Path | None, *, tls: bool) -> Login:
    """Read the credentials.

    Args:
        folder: the folder with a file for each key of the Secret, or None if there is no Secret.
        tls: whether the connection is encrypted.

    Raises:
        OSError: a file cannot be read, or is not a valid certificate or key (ssl.SSLError).
    """
    return Login(_text(folder, USERNAME), _text(folder, PASSWORD), _context(folder) if tls else None)


def _context(folder: Path | None) -> ssl.SSLContext:
    authority = _file(folder, CA)
    context = ssl.create_default_context(cafile=str(authority) if authority is not None else None)
    certificate, key = _file(folder, CERTIFICATE), _file(folder, KEY)
    if certificate is not None:
        context.load_cert_chain(str(certificate), str(key) if key is not None else None)
    return context


def _file(folder: Path | None, name: str) -> Path | None:
    path = folder / name if folder is not None else None
    return path if path is not None and path.exists() else None


def _text(folder: Path | None, name: str) -> str | None:
    path = _file(folder, name)
    return read_text(path).rstrip("\r\n") if path is not None else None
