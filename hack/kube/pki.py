"""Issues the certificates of one cluster, and stores them in one folder.

A second call with the same name returns the certificate of the first call.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, both PEM files."""

    certificate: Path
    key: Path


class Authority:
    """A cluster's certificate authority.

    Attributes:
        certificate: The authority's certificate, a PEM file, which clients trust.
        key: The authority's private key, a PEM file. The controller manager signs certificate requests with it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.certificate, self.key = folder / "ca.crt", folder / "ca.key"
        if self.certificate.exists():
            self._ca = trustme.CA.from_pem(self.certificate.read_bytes(), self.key.read_bytes())
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self._ca = trustme.CA()
            _write(self.key, self._ca.private_key_pem.bytes(), mode=0o600)
            _write(self.certificate, self._ca.cert_pem.bytes())

    def issue(
        self,
        file_name: str,
        *,
        common_name: str,
        organization: str | None = None,
        addresses: Sequence[str] = (),
        names: Sequence[str] = (),
    ) -> Pair:
        """Issue a certificate for a client; with addresses or names, also for a server.

        Args:
            file_name: The name of the two files, without extension.
            common_name: The user's name.
            organization: The user's group.
            addresses: The IP addresses on which the server listens.
            names: The DNS names of the server.
        """
        pair = Pair(self._folder / f"{file_name}.crt", self._folder / f"{file_name}.key")
        if not pair.certificate.exists():
            # Java refuses certificates whose list of names is empty.
            hosts = [*addresses, *names] or [file_name]
            issued = self._ca.issue_cert(*hosts, common_name=common_name, organization_name=organization)
            _write(pair.key, issued.private_key_pem.bytes(), mode=0o600)
            _write(pair.certificate, issued.cert_chain_pems[0].bytes())
        return pair


def _write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
