"""Writes and reads the mark of events that ingest has refused, or on which the Python stage has failed.

Anybody who can write to the events topic can forge the mark. A forged mark does no harm to other events, because a
marked record always becomes a dead letter. The reason in the headers is trusted only if it is one that a decoder can
give, and, for most reasons, if the decoder refuses the event too.
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
    """Return the headers for the record of a refused event."""
    made = [(REASON_HEADER, str(verdict.reason).encode())]
    # Senders choose the names of unknown fields, so a text can be long or contain NUL, which Postgres refuses. So texts
    # are truncated, and NUL is escaped.
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
    """Return the verdict on a marked record, or None if its reason shows that ingest did not write it.

    Args:
        value: the record's bytes, with the mark.
        found: the record's headers.
        refusal: a function that returns the decoder's verdict on an event's bytes, or None if the event is valid.
    """
    texts = {name: raw.decode("utf-8", "replace") for name, raw in found if raw is not None}
    if texts.get(REASON_HEADER) not in _GIVEN:
        return None
    reason = Reason(texts[REASON_HEADER])
    own = refusal(value[len(QUARANTINE_PREFIX) :])
    # An event that was too far in the future for ingest may be valid by now. The Python stage may fail on a valid
    # event.
    if own is None and reason not in (Reason.TOO_FAR_IN_THE_FUTURE, Reason.TRANSFORM_FAILED):
        detail = (
            f"begins with a zero byte, which marks events that ingest has refused ({reason}), but a valid event"
            " follows; if another sender has written it, send it without that byte"
        )
        return InvalidEvent(Reason.NOT_JSON, None, detail)
    known = own.detail if own is not None and own.reason is reason else "refused by ingest"
    detail = texts.get(DETAIL_HEADER, "") or known
    return InvalidEvent(reason, texts.get(FIELD_HEADER) or None, detail)
