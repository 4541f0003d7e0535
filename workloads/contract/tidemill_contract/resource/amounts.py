"""Parse amounts of bytes in the notation of Kubernetes, such as `512Mi`, `1Gi` and `2G`."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated

from pydantic import StringConstraints

PATTERN = r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|k|M|G)?$"
Bytes = Annotated[str, StringConstraints(pattern=PATTERN, max_length=16)]
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def parse_bytes(text: str) -> int:
    """Return the number of bytes of an amount such as `512Mi`, or raise ValueError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(Ki|Mi|Gi|k|M|G)?", text, re.ASCII)
    if match is None:
        raise ValueError(f"'{text}' is not an amount of bytes: write a number and a unit, such as 512Mi or 1Gi")
    return int(Decimal(match.group(1)) * _UNITS[match.group(2) or ""])
