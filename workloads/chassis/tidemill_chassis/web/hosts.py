"""The names that a service may be called by.

A page elsewhere, whose own name is made to lead here (DNS rebinding), is not answered. An address always is: there is
no name that could have been made to lead here.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

_NAME = re.compile(r"\*|(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?", re.ASCII)
HOW = "call it by another name, or add this one to TIDEMILL_ALLOWED_HOSTS"


class Hosts:
    """A list of names.

    Attributes:
        any: every name is taken.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """Read names such as `api.example.com`, `*.example.com` (what is below it) and `*` (all); empty: all.

        Raises:
            ValueError: one is no such name.
        """
        found = {name.strip().lower().rstrip(".") for name in names} - {""}
        for name in found:
            if not _NAME.fullmatch(name):
                raise ValueError(f"TIDEMILL_ALLOWED_HOSTS: {name!r} is no host name; write one such as api.example.com")
        self.any = not found or "*" in found
        self._exact = {name for name in found if not name.startswith("*")}
        self._below = tuple(name[1:] for name in found if name.startswith("*."))

    @classmethod
    def parse(cls, text: str) -> Hosts:
        """Names between commas."""
        return cls(text.split(","))

    def allow(self, header: str | None) -> bool:
        """Whether a request with this Host header is answered; one without it comes from no browser."""
        if self.any or not header:
            return True
        name = _without_port(header.strip().lower()).rstrip(".")
        return name in self._exact or name.endswith(self._below) or _is_address(name)


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
