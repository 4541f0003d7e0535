"""How the JSON reader takes the values of each field: its types, and the defaults as events have them."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

import msgspec

from tidemill_contract.events.members import as_object, mended
from tidemill_contract.resource.spec import FieldSpec

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MILLISECOND = dt.timedelta(milliseconds=1)
_DEFAULTS = {
    "string": "write a text without NUL characters, in quotes",
    "integer": "write a whole number of 64 bits",
    "number": "write a number",
    "boolean": "write true or false",
    "timestamp": "write RFC 3339 in quotes, such as '2026-11-28T10:00:00Z', or epoch milliseconds",
}

TYPES: dict[str, Any] = {
    "string": str,
    "integer": Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)],
    "number": float,
    "boolean": bool,
    "timestamp": int | Annotated[dt.datetime, msgspec.Meta(tz=True)],
}


def epoch_ms(moment: dt.datetime) -> int:
    """Epoch milliseconds of a moment, cut."""
    return (moment - EPOCH) // _MILLISECOND


def default_of(field: FieldSpec) -> Any:
    """A field's default as events have it; None: it has none.

    Raises:
        ValueError: it is not a value of the field's type; the text is `message: remedy`.
    """
    if field.default is None:
        return None
    try:
        text = {field.name: msgspec.json.encode(field.default)}
        whole = mended(text, {field.name: field.type}) or as_object(text)
        value = msgspec.json.decode(whole, type=dict[str, TYPES[field.type]])[field.name]
    except (msgspec.MsgspecError, OverflowError):
        raise ValueError(f"is not of type {field.type}: {_DEFAULTS[field.type]}") from None
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"holds a NUL character: {_DEFAULTS[field.type]}")
    return epoch_ms(value) if isinstance(value, dt.datetime) else value
