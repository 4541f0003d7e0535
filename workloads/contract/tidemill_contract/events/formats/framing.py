"""Read values with the framing of a schema registry.

The framing has a zero byte, the schema id (four bytes) and the value.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidemill_contract.events.details import shown
from tidemill_contract.events.formats.opening import Content, Opener
from tidemill_contract.events.verdicts import InvalidEvent, Reason

MAGIC, FRAME_BYTES = b"\0", 5


def check_framed(raw: bytes) -> None:
    """Check that a value has the framing, and raise InvalidEvent if not."""
    if raw[:1] != MAGIC or len(raw) < FRAME_BYTES:
        came = "an empty record" if not raw else f"{shown(raw[:1].hex().encode())}… in hexadecimal digits"
        if raw[:1] in (b"{", b"["):
            came = f"what looks like JSON, {shown(raw)}"
        remedy = (
            "write records with a serializer of the registry, or correct source.format.type (json: without a registry)"
        )
        detail = f"expected a zero byte and a schema id, as serializers of a registry write, got {came}; {remedy}"
        raise InvalidEvent(Reason.UNREADABLE, None, detail)


class Framed(Opener):
    """Removes the framing of JSON values, and ignores the schema in the registry."""

    def __init__(self, inner: Opener) -> None:
        super().__init__(inner.deletes)
        self._inner = inner

    def together(self, raws: Sequence[bytes]) -> tuple[list[bytes], Sequence[bytes]]:
        """Return the events and the envelopes of many records. If any record has no framing, both lists are empty."""
        if not all(raw[:1] == MAGIC and len(raw) > FRAME_BYTES for raw in raws):
            return [], []
        return self._inner.together([raw[FRAME_BYTES:] for raw in raws])

    def single(self, raw: bytes) -> Content | None:
        """Return the event and the envelope of a record, or raise InvalidEvent."""
        check_framed(raw)
        return self._inner.single(raw[FRAME_BYTES:])
