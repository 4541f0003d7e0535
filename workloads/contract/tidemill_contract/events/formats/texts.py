"""Convert texts, such as headers and CSV cells, to JSON values of the field's type."""

from __future__ import annotations

import re

import msgspec

from tidemill_contract.events.invalid_events import InvalidEvent, Reason
from tidemill_contract.resource.source import FieldSpec

_NUMBER = re.compile(rb"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def as_json(text: bytes, field: FieldSpec) -> bytes:
    """Convert a text to a JSON value of the field's type. If the conversion fails, return a JSON string.

    Raises:
        InvalidEvent: the text is not UTF-8.
    """
    if field.type != "string" and (_NUMBER.fullmatch(text) or text in (b"true", b"false", b"null")):
        return text
    try:
        return msgspec.json.encode(text.decode())
    except UnicodeDecodeError:
        detail = f"{field.place} is not UTF-8; send text"
        raise InvalidEvent(Reason.MISTYPED, field.name, detail) from None
