"""Fields of type json: kept with the event as they came, and read by nothing.

They are cut out of an event's bytes only where the event is kept, so other fields may be read from within them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from tidemill_contract.events.members import Members, items, members
from tidemill_contract.events.verdicts import InvalidEvent, Reason
from tidemill_contract.resource.paths import Steps

JSON = "json"
"""The type of such fields."""
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_BROKEN = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class KeptJson:
    """The fields of type json of one pipeline."""

    def __init__(self, places: dict[str, Steps]) -> None:
        """Prepare; `places`: where they are, by name."""
        self._places = places

    def unusual(self, parts: Sequence[bytes]) -> bool:
        """Whether some events have to be looked at one by one; `parts` are their bytes, many events together."""
        # What the JSON reader skips may be anything but UTF-8; halves of surrogate pairs it refuses everywhere.
        try:
            for part in parts:
                part.decode()
        except UnicodeDecodeError:
            return True
        return False

    def check(self, raw: bytes) -> None:
        """See that Postgres can store the fields of a valid event.

        Raises:
            InvalidEvent: it cannot.
        """
        for name, text in self._texts(raw).items():
            try:
                text.decode()
                msgspec.json.decode(text)
            except _BROKEN as error:
                detail = f"{name} is not JSON in UTF-8 ({error}); send JSON in UTF-8"
                raise InvalidEvent(Reason.BAD_STRING, name, detail) from None
            if _NUL.search(text):
                raise InvalidEvent(Reason.BAD_STRING, name, "holds a NUL character, which Postgres cannot store")

    def added(self, fields: bytes, raw: bytes) -> bytes:
        """A JSON object with these fields too; null where an event has none."""
        found = self._texts(raw)
        texts = (b'"%b":%b' % (name.encode(), found.get(name, b"null")) for name in self._places)
        begin = fields[:-1] + (b"," if len(fields) > 2 else b"")
        return begin + b",".join(texts) + b"}"

    def _texts(self, raw: bytes) -> Members:
        found = {name: text_at(raw, steps) for name, steps in self._places.items()}
        return {name: text for name, text in found.items() if text is not None}


def text_at(raw: bytes, steps: Steps) -> bytes | None:
    """The JSON text at a path; None: nothing is there, or what is on the path is neither object nor array."""
    text: bytes | None = raw
    for step in steps:
        try:
            if text is None:
                return None
            if isinstance(step, str):
                text = members(text).get(step)
            elif isinstance(step, int):
                held = items(text)
                text = held[step] if step < len(held) else None
        except _BROKEN:
            return None
    return text
