"""How far a pipeline is, as live listeners are told it, and the token that they resume with."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import msgspec

from tidemill_api.describe import time_ms

_VERSION = 1
_MAX_TOKEN = 8_192


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """Up to where changes of an aggregation are known.

    Attributes:
        table: identity of its table (the OID); another table, another history.
        rev: every revision up to this one is known.
        closed_until: revisions after `rev` changed no window that ends by this (epoch ms); None: any window.
    """

    table: int
    rev: int
    closed_until: int | None = None


Marks = Mapping[str, Mark]


def write_token(marks: Marks) -> str:
    """The resume token of marks by aggregation."""
    packed = msgspec.msgpack.encode([_VERSION, dict(marks)])
    return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def read_token(text: str) -> dict[str, Mark]:
    """The marks in a token; empty, hence a gap everywhere, if it is none of ours."""
    if len(text) > _MAX_TOKEN:
        return {}
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        version, marks = msgspec.msgpack.decode(packed, type=tuple[int, dict[str, Mark]])
    except (ValueError, msgspec.DecodeError):
        return {}
    return marks if version == _VERSION else {}


@dataclass(frozen=True)
class Progress:
    """What a `progress` says; its text is made once.

    Attributes:
        closed_until_ms: by aggregation.
        degraded: changes are polled for, and come later than usual.
    """

    watermark_ms: int | None = None
    closed_until_ms: Mapping[str, int | None] = field(default_factory=dict)
    marks: Marks = field(default_factory=dict)
    degraded: bool = False

    @cached_property
    def resume(self) -> str:
        """The token of a listener that has got everything up to here."""
        return write_token(self.marks)

    @cached_property
    def message(self) -> bytes:
        """The `progress`."""
        return msgspec.json.encode({
            "type": "progress",
            "watermark": time_ms(self.watermark_ms),
            "closed_until": {name: time_ms(value) for name, value in self.closed_until_ms.items()},
            "resume": self.resume,
            "degraded": self.degraded,
        })  # fmt: skip
