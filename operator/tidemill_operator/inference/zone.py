"""The time zone of this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tidemill_contract.events.timestamps import check_zone

UTC = "UTC"
_LINK = Path("/etc/localtime")
_FOLDER = "zoneinfo/"


def local_zone(environ: Mapping[str, str] = os.environ, link: Path = _LINK) -> str:
    """Return the name of this machine's time zone, such as Europe/Berlin.

    If the zone is unknown, return UTC.
    """
    target = str(link.resolve()) if link.exists() else ""
    for name in (environ.get("TZ", "").removeprefix(":"), target.partition(_FOLDER)[2]):
        try:
            check_zone(name)
        except ValueError:
            continue
        return UTC if name in ("Etc/UTC", "Etc/UCT", "UCT", "GMT", "Etc/GMT") else name
    return UTC
