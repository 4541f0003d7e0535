"""Fields of type json. The values of these fields are stored unchanged with the raw event, and never aggregated."""

from __future__ import annotations

import re

from tidemill_contract.events.invalid_events import InvalidEvent, Reason
from tidemill_contract.events.members import JSON_ERRORS, Members, items, members
from tidemill_contract.resource.paths import Steps

JSON = "json"
"""The name of the json type in the spec."""
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class JsonFields:
    """The fields of type json of one pipeline."""

    def __init__(self, paths: dict[str, Steps]) -> None:
        self._paths = paths

    def check(self, raw: bytes) -> None:
        """Check that Postgres can store the json fields of a valid event.

        Raises:
            InvalidEvent: a field has a NUL character.
        """
        for name, text in self._texts(raw).items():
            if _NUL.search(text):
                raise InvalidEvent(Reason.BAD_STRING, name, "contains a NUL character, which Postgres cannot store")

    def add_to(self, fields: bytes, raw: bytes) -> bytes:
        """Add an event's fields of type json to the JSON object `fields`. An absent field becomes null."""
        raw_fields = self._texts(raw)
        texts = (b'"%b":%b' % (name.encode(), raw_fields.get(name, b"null")) for name in self._paths)
        start = fields[:-1] + (b"," if len(fields) > 2 else b"")
        return start + b",".join(texts) + b"}"

    def _texts(self, raw: bytes) -> Members:
        texts = {name: text_at(raw, steps) for name, steps in self._paths.items()}
        return {name: text for name, text in texts.items() if text is not None}


def text_at(raw: bytes, steps: Steps) -> bytes | None:
    """Return the JSON text at a path, or None if the path leads to no value."""
    text: bytes | None = raw
    for step in steps:
        try:
            if text is None:
                return None
            if isinstance(step, str):
                text = members(text).get(step)
            elif isinstance(step, int):
                elements = items(text)
                text = elements[step] if step < len(elements) else None
        except JSON_ERRORS:
            return None
    return text
