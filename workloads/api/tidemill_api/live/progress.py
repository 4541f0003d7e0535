"""The `progress` messages of live connections, and the token with which a client resumes after a disconnection."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import msgspec

from tidemill_api.describe import format_epoch_ms

_VERSION = 1
_MAX_TOKEN = 8_192


class Position(msgspec.Struct, frozen=True, array_like=True):
    """The position up to which a client has received the changes of an aggregation.

    Attributes:
        table_oid: the OID of the aggregation's table.
        rev: the newest revision that the client has received.
        closed_until: the time up to which windows were closed at this position (epoch ms).
    """

    table_oid: int
    rev: int
    closed_until: int | None = None


Positions = Mapping[str, Position]


def write_token(positions: Positions) -> str:
    """Return the resume token that contains the position of each aggregation."""
    packed = msgspec.msgpack.encode([_VERSION, dict(positions)])
    return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def read_token(text: str) -> dict[str, Position]:
    """Return the positions in a resume token, or an empty dict for an invalid token."""
    if len(text) > _MAX_TOKEN:
        return {}
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        version, positions = msgspec.msgpack.decode(packed, type=tuple[int, dict[str, Position]])
    except (ValueError, msgspec.DecodeError):
        return {}
    return positions if version == _VERSION else {}


@dataclass(frozen=True)
class Progress:
    """The content of a `progress` message.

    Attributes:
        watermark_ms: the watermark (epoch ms).
        closed_until_ms: the time up to which windows are closed (epoch ms), by aggregation.
        positions: the position up to which changes were sent, by aggregation.
        degraded: whether changes are found by polling, and so come later than usual.
    """

    watermark_ms: int | None = None
    closed_until_ms: Mapping[str, int | None] = field(default_factory=dict)
    positions: Positions = field(default_factory=dict)
    degraded: bool = False

    @cached_property
    def resume(self) -> str:
        """The token of a client that has received all changes up to this progress."""
        return write_token(self.positions)

    @cached_property
    def message(self) -> bytes:
        """The `progress` message."""
        return msgspec.json.encode({
            "type": "progress",
            "watermark": format_epoch_ms(self.watermark_ms),
            "closed_until": {name: format_epoch_ms(value) for name, value in self.closed_until_ms.items()},
            "resume": self.resume,
            "degraded": self.degraded,
        })  # fmt: skip
