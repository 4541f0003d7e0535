"""The mark of an event that ingest has refused: how ingest writes it, and when the processor believes it.

Who may write to the events topic may also write the mark. It gives nobody power over another's events: a record that
begins with it is a dead letter in any case. What the headers say is believed only where the decoder refuses the event
as well, and only reasons that a decoder gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tidemill_contract.events.verdicts import (
    DETAIL_HEADER,
    FIELD_HEADER,
    QUARANTINE_PREFIX,
    REASON_HEADER,
    InvalidEvent,
    Reason,
)

Headers = list[tuple[str, bytes]]

_FIELD_CHARACTERS, _DETAIL_CHARACTERS = 200, 500
_GIVEN = frozenset(Reason) - {Reason.EXPRESSION_FAILED, Reason.REFUSED_BY_DATABASE, Reason.LATE}


def headers(verdict: InvalidEvent) -> Headers:
    """The headers of a refused event's record."""
    made = [(REASON_HEADER, str(verdict.reason).encode())]
    # A sender chooses the names of unknown fields: bounded, and without what Postgres cannot store.
    for name, text, characters in (
        (FIELD_HEADER, verdict.field, _FIELD_CHARACTERS),
        (DETAIL_HEADER, verdict.detail, _DETAIL_CHARACTERS),
    ):
        if text:
            made.append((name, text[:characters].replace("\0", "\\0").encode("utf-8", "replace")))
    return made


def verdict_of(
    value: bytes, found: Sequence[tuple[str, bytes | None]], refusal: Callable[[bytes], InvalidEvent | None]
) -> InvalidEvent | None:
    """Ingest's verdict on a marked record; None: ingest has not made it.

    Args:
        value: the record's bytes, with the mark.
        found: the record's headers.
        refusal: the decoder's own verdict on an event's bytes; None: they are a valid event.
    """
    texts = {name: raw.decode("utf-8", "replace") for name, raw in found if raw is not None}
    if texts.get(REASON_HEADER) not in _GIVEN:
        return None
    reason = Reason(texts[REASON_HEADER])
    own = refusal(value[len(QUARANTINE_PREFIX) :])
    # What was too far ahead of the clock when ingest had it may no longer be so.
    if own is None and reason is not Reason.TOO_FAR_IN_THE_FUTURE:
        detail = (
            f"begins with a zero byte, as what ingest refuses ({reason}), but a valid event follows; if ingest has not"
            " written it, send it without that byte"
        )
        return InvalidEvent(Reason.NOT_JSON, None, detail)
    known = own.detail if own is not None and own.reason is reason else "refused by ingest"
    detail = texts.get(DETAIL_HEADER, "") or known
    return InvalidEvent(reason, texts.get(FIELD_HEADER) or None, detail)
