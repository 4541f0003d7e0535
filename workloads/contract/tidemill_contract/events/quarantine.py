"""Mark events that failed in ingest or in the Python stage, and read the marks.

Every marked record becomes a dead letter, even if a sender forged the mark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tidemill_contract.events.invalid_events import (
    DETAIL_HEADER,
    FIELD_HEADER,
    QUARANTINE_PREFIX,
    REASON_HEADER,
    InvalidEvent,
    Reason,
)

Headers = list[tuple[str, bytes]]

_FIELD_CHARACTERS, _DETAIL_CHARACTERS = 200, 500
_ALLOWED_REASONS = frozenset(Reason) - {Reason.EXPRESSION_FAILED, Reason.REFUSED_BY_DATABASE, Reason.LATE}


def headers(error: InvalidEvent) -> Headers:
    """Return the record headers for a refused event."""
    record_headers = [(REASON_HEADER, str(error.reason).encode())]
    # Headers can contain field names that a sender chose, so headers are truncated, and NUL is escaped.
    for name, text, characters in (
        (FIELD_HEADER, error.field, _FIELD_CHARACTERS),
        (DETAIL_HEADER, error.detail, _DETAIL_CHARACTERS),
    ):
        if text:
            record_headers.append((name, text[:characters].replace("\0", "\\0").encode("utf-8", "replace")))
    return record_headers


def read_mark(
    value: bytes, headers: Sequence[tuple[str, bytes | None]], refusal: Callable[[bytes], InvalidEvent | None]
) -> InvalidEvent | None:
    """Return why an event with the mark is invalid, or None if its headers contain no allowed reason.

    Args:
        value: the record's bytes, with the mark.
        headers: the record's headers.
        refusal: a function that returns why an event's bytes are invalid, or None if the event is valid.
    """
    texts = {name: raw.decode("utf-8", "replace") for name, raw in headers if raw is not None}
    if texts.get(REASON_HEADER) not in _ALLOWED_REASONS:
        return None
    reason = Reason(texts[REASON_HEADER])
    event_error = refusal(value[len(QUARANTINE_PREFIX) :])
    # `refusal` cannot confirm these two reasons. `refusal` takes the record's timestamp as the current time. The
    # timestamp can be later than the moment at which ingest checked the event. `refusal` never runs the Python
    # function.
    if event_error is None and reason not in (Reason.TOO_FAR_IN_THE_FUTURE, Reason.TRANSFORM_FAILED):
        detail = (
            f"begins with a zero byte, the mark of ingest for refused events ({reason}); but the bytes after the zero"
            " byte are a valid event; if you wrote this record without ingest, omit the zero byte"
        )
        return InvalidEvent(Reason.NOT_JSON, None, detail)
    default_detail = (
        event_error.detail if event_error is not None and event_error.reason is reason else "refused by ingest"
    )
    detail = texts.get(DETAIL_HEADER, "") or default_detail
    return InvalidEvent(reason, texts.get(FIELD_HEADER) or None, detail)
