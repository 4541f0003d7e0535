"""Read values with the framing of a schema registry.

The framing has a zero byte, the schema id (four bytes) and the value.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidemill_contract.events.event_errors import show_bytes
from tidemill_contract.events.formats.opener import Content, Opener
from tidemill_contract.events.invalid_events import InvalidEvent, Reason

MAGIC, FRAME_BYTES = b"\0", 5


def check_framing(raw: bytes) -> None:
    """Check that a value has the framing, and raise InvalidEvent if not."""
    if raw[:1] != MAGIC or len(raw) < FRAME_BYTES:
        received = "an empty record" if not raw else f"{show_bytes(raw[:1].hex().encode())}… in hexadecimal digits"
        if raw[:1] in (b"{", b"["):
            received = f"what looks like JSON, {show_bytes(raw)}"
        remedy = (
            "write records with a serializer of the registry, or correct source.format.type (json: without a registry)"
        )
        detail = f"expected a zero byte and a schema id, as serializers of a registry write, got {received}; {remedy}"
        raise InvalidEvent(Reason.UNREADABLE, None, detail)


class FramedOpener(Opener):
    """Removes the framing of JSON values, and ignores the schema in the registry."""

    def __init__(self, inner: Opener) -> None:
        super().__init__(inner.deletes)
        self._inner = inner

    def open_together(self, raws: Sequence[bytes]) -> tuple[list[bytes], Sequence[bytes]]:
        """Return the events and the envelopes of many records. If any record has no framing, both lists are empty."""
        if not all(raw[:1] == MAGIC and len(raw) > FRAME_BYTES for raw in raws):
            return [], []
        return self._inner.open_together([raw[FRAME_BYTES:] for raw in raws])

    def open_one(self, raw: bytes) -> Content | None:
        """Return the event and the envelope of a record, or raise InvalidEvent."""
        check_framing(raw)
        return self._inner.open_one(raw[FRAME_BYTES:])
