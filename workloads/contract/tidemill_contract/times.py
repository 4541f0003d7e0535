"""Times as Tidemill's answers and records write them: RFC 3339, UTC, milliseconds only where there are any."""

from __future__ import annotations

import datetime as dt

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def rfc3339(moment: dt.datetime) -> str:
    """`2013-01-01T05:00:00Z`, or with milliseconds `…:00.250Z`."""
    moment = moment.astimezone(dt.UTC)
    text = moment.isoformat(timespec="milliseconds" if moment.microsecond else "seconds")
    return text.replace("+00:00", "Z")


def rfc3339_ms(epoch_ms: int) -> str:
    """The same of epoch milliseconds."""
    return rfc3339(_EPOCH + dt.timedelta(milliseconds=epoch_ms))
