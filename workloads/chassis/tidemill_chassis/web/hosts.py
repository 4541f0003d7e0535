"""Checks the host names that clients of a service use, as a protection against DNS rebinding."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

_NAME = re.compile(r"\*|(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?", re.ASCII)
REMEDY = "use another host name, or add this name to TIDEMILL_ALLOWED_HOSTS"


class Hosts:
    """The allowed host names."""

    def __init__(self, names: Iterable[str]) -> None:
        """Parse names such as `api.example.com`, `*.example.com` (all subdomains) and `*` (all names).

        If `names` is empty, all host names are allowed.

        Raises:
            ValueError: a name is not valid.
        """
        hosts = {name.strip().lower().rstrip(".") for name in names} - {""}
        for name in hosts:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"TIDEMILL_ALLOWED_HOSTS: {name!r} is not a host name; write a name such as api.example.com"
                )
        self.allow_all = not hosts or "*" in hosts
        self._exact = {name for name in hosts if not name.startswith("*")}
        self._subdomain_suffixes = tuple(name[1:] for name in hosts if name.startswith("*."))

    @classmethod
    def parse(cls, text: str) -> Hosts:
        """Parse names that are separated by commas."""
        return cls(text.split(","))

    def allow(self, header: str | None) -> bool:
        """Return whether to allow a request with this Host header."""
        if self.allow_all or not header:
            return True
        name = _without_port(header.strip().lower()).rstrip(".")
        return name in self._exact or name.endswith(self._subdomain_suffixes) or _is_address(name)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
