"""Chooses what a pipeline computes: the event time, the groups, the window and the metrics."""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tidemill_operator.inference.columns import BOOLEAN, INTEGER, STRING, STRINGS, TIMESTAMP
from tidemill_operator.inference.field_types import FieldDraft

_SECOND, _MINUTE, _HOUR, _DAY = 1_000, 60_000, 3_600_000, 86_400_000
_COMMON_DURATIONS_MS = (
    5 * _SECOND, 30 * _SECOND, _MINUTE, 5 * _MINUTE, 15 * _MINUTE, _HOUR, 6 * _HOUR, _DAY, 2 * _DAY, 7 * _DAY,
    30 * _DAY, 365 * _DAY, 3650 * _DAY,
)  # fmt: skip
_WINDOWS_MS = (10 * _SECOND, _MINUTE, 5 * _MINUTE, 15 * _MINUTE, _HOUR, 6 * _HOUR, _DAY)
_MAX_WINDOWS = 200
"""The maximum number of drafted windows in the sample. Windows of one day may exceed this number."""
_MAX_GROUPS = 200
_TOLERATED_EMPTY = 0.1
_MAX_NUMBERS = 4
_LIKELY_TIMES = (
    "ts", "timestamp", "time", "event_time", "datetime", "occurred_at", "created_at", "created", "date", "datum",
    "zeitstempel", "zeitpunkt", "zeit", "bestelldatum", "order_date", "start_time",
)  # fmt: skip
_LATER_TIMES = re.compile(r"updat|modif|delet|expir|due|end|deliver|ship|birth|geburt|liefer|faellig|geaend|bis")
_LIKELY_GROUPS = re.compile(
    r"country|land|region|state|city|stadt|ort|status|type|typ|kind|art|categor|kategor|product|produkt|artikel|channel"
    r"|kanal|segment|event|action|method|level|host|service|carrier|shop|store|filiale|plan|currency|event_name"
)
_IDS = re.compile(r"(^|_)(id|ids|uuid|guid|key|hash|token|nr|no|num|number|nummer|code|index|idx|version|zip|plz)$|id$")
_PEOPLE = re.compile(r"user|customer|kunde|client|account|konto|session|device|visitor|member|host|sensor|carrier")
_AMOUNTS = re.compile(
    r"amount|price|preis|betrag|summe|total|revenue|umsatz|cost|kosten|sales|quantity|qty|menge|anzahl|stueck|bytes|size"
    r"|count|fee|gebuehr|tax|steuer|netto|brutto|distance|requests|clicks|views|units"
)
_POSITIONS = re.compile(r"(^|_)(lat|lon|lng|latitude|longitude|breite|laenge)(_|$)")
_CALENDAR = re.compile(
    r"^(year|jahr|quarter|quartal|month|monat|week|woche|weekday|wochentag|day|tag|hour|stunde|minute)$"
)


@dataclass(frozen=True)
class EventTimeDraft:
    """The event times of a sample.

    Attributes:
        field: the field with the event times, or None for the timestamp of the Kafka record.
        disorder_ms: the maximum lateness of events, rounded up to a common duration of at least 5 s. The 0.1 % of the
            events with the highest lateness is ignored.
        advance_ms: the largest step from the newest event time so far to a newer one.
        window_ms: the length of the drafted window.
        span_ms: the time from the oldest event to the newest.
        future_events: the number of events with a time in the future.
    """

    field: FieldDraft | None
    disorder_ms: int = 5 * _SECOND
    advance_ms: int = _DAY
    window_ms: int = _MINUTE
    span_ms: int = 0
    future_events: int = 0


@dataclass(frozen=True)
class Choices:
    """The event time, the groups and the metrics of the drafted pipeline."""

    event_time: EventTimeDraft
    group: FieldDraft | None
    metrics: tuple[dict[str, Any], ...]


def choose(fields: Sequence[FieldDraft], events: int, now_ms: int) -> Choices:
    """Choose event time, groups and metrics for a sample of events."""
    event_time = _choose_event_time(fields, events, now_ms)
    group = _group(fields, events)
    return Choices(event_time, group, tuple(_metrics(fields, group, events)))


def round_up_ms(minimum_ms: float) -> int:
    """Round up to a common duration, such as a minute or an hour."""
    return next((duration for duration in _COMMON_DURATIONS_MS if duration >= minimum_ms), _COMMON_DURATIONS_MS[-1])


def _choose_event_time(fields: Sequence[FieldDraft], events: int, now_ms: int) -> EventTimeDraft:
    candidates = [field for field in fields if field.type == TIMESTAMP and field.empty + field.misfits < events / 2]
    if not candidates:
        return EventTimeDraft(None)
    latest = now_ms + _HOUR
    times_ms = {field.name: [micros // 1000 for each in field.column.values if (micros := field.read(each)) is not None]
            for field in candidates}  # fmt: skip
    chosen = max(candidates, key=lambda field: _time_score(field, times_ms[field.name], events, latest))
    valid_ms = [ms for ms in times_ms[chosen.name] if 0 <= ms <= latest]
    future_events = sum(ms > latest for ms in times_ms[chosen.name])
    if len(valid_ms) < 2:
        return EventTimeDraft(chosen, future_events=future_events)
    span = max(valid_ms) - min(valid_ms)
    date_only = chosen.form is not None and chosen.form.date_only
    windows = [size for size in _WINDOWS_MS if span / size <= _MAX_WINDOWS and not (date_only and size < _DAY)]
    forward = max(later - earlier for earlier, later in itertools.pairwise(itertools.accumulate(valid_ms, max)))
    return EventTimeDraft(
        chosen,
        disorder_ms=round_up_ms(max(_disorder(valid_ms), 5 * _SECOND)),
        advance_ms=max(_DAY, round_up_ms(forward)),
        window_ms=max(windows[0] if windows else _DAY, _DAY if date_only else _MINUTE),
        span_ms=span,
        future_events=future_events,
    )


def _time_score(field: FieldDraft, times_ms: Sequence[int], events: int, latest: int) -> float:
    if not times_ms:
        return -10.0
    score = 2.0 * (len(times_ms) / events) - 5.0 * (sum(ms > latest for ms in times_ms) / len(times_ms))
    if field.name in _LIKELY_TIMES:
        score += 2.0 - _LIKELY_TIMES.index(field.name) / 100
    score += 1.0 if field.form is not None and not field.form.date_only else 0.0
    score -= 1.5 if _LATER_TIMES.search(field.name) else 0.0
    return score - 0.1 * len(field.column.steps)


def _disorder(times_ms: Iterable[int]) -> int:
    """Return the maximum lateness of events in ms, ignoring the 0.1 % with the highest lateness.

    The lateness of an event is how far its time is behind the newest event time earlier in the file.
    """
    newest, lateness = 0, []
    for ms in times_ms:
        newest = max(newest, ms)
        lateness.append(newest - ms)
    lateness.sort()
    return lateness[max(0, -(-len(lateness) * 999 // 1000) - 1)]


def _group(fields: Sequence[FieldDraft], events: int) -> FieldDraft | None:
    """Return the field that divides the events into a few large groups."""
    scored = [(score, -at, field) for at, field in enumerate(fields) if (score := _group_score(field, events)) > 0]
    return max(scored, key=lambda each: each[:2])[2] if scored else None


def _group_score(field: FieldDraft, events: int) -> float:
    if field.type not in (STRING, BOOLEAN) and not (field.type == INTEGER and _LIKELY_GROUPS.search(field.name)):
        return 0.0
    groups = len(field.column.distinct)
    if not 1 < groups <= _MAX_GROUPS or field.empty > _TOLERATED_EMPTY * events or groups > events / 3:
        return 0.0
    if field.type == STRING and any(len(str(value)) > 100 for value in field.column.distinct):
        return 0.0
    score = 1.0 if 3 <= groups <= 50 else 0.5
    score += 1.0 if _LIKELY_GROUPS.search(field.name) else 0.0
    return score - (0.7 if _IDS.search(field.name) else 0.0) - (0.4 if field.type == BOOLEAN else 0.0)


def _metrics(fields: Sequence[FieldDraft], group: FieldDraft | None, events: int) -> Iterable[dict[str, Any]]:
    yield {"name": "event_count" if group is not None and group.name == "events" else "events", "function": "count"}
    numbers = [field for field in fields if field.numeric and not _is_id(field, events) and field is not group]
    numbers.sort(key=lambda field: not _AMOUNTS.search(field.name))
    for field in numbers[:_MAX_NUMBERS]:
        is_position = _POSITIONS.search(field.name)
        if _AMOUNTS.search(field.name) and not is_position:
            yield _metric("sum", field)
        yield _metric("avg", field)
        if not is_position:
            yield _metric("max", field)
    for field in [field for field in fields if field.type == BOOLEAN and field is not group][:2]:
        yield {**_metric("avg", field), "name": f"{field.name[:35]}_share"}
    people = [field for field in fields if _PEOPLE.search(field.name) and field.type in (STRING, INTEGER)]
    people = [field for field in people if field is not group and len(field.column.distinct) > 1][:1]
    for field in people:
        yield _metric("distinct", field)
    lists = [field for field in fields if field.type in (STRING, STRINGS) and field not in (group, *people)]
    for field in [field for field in lists if _repeats(field, events)][:1]:
        yield {**_metric("topk", field), "name": f"top_{field.name[:37]}", "k": 5}


def _metric(function: str, field: FieldDraft) -> dict[str, Any]:
    return {"name": f"{function}_{field.name}"[:41], "function": function, "field": field.name}


def _is_id(field: FieldDraft, events: int) -> bool:
    """Return True if a number is only an identifier.

    A sum of identifiers has no meaning.
    """
    if _IDS.search(field.name) or _CALENDAR.search(field.name):
        return True
    if field.type != INTEGER or _AMOUNTS.search(field.name) or events < 20:
        return False
    distinct = field.column.distinct
    if len(distinct) < 0.98 * events:
        return False
    numbers = [n for value in field.column.values[:1000] if isinstance(n := field.read(value), int | float)]
    steps = [later - earlier for earlier, later in itertools.pairwise(numbers)]
    return bool(steps) and statistics.median(steps) == 1  # consecutive numbers


def _repeats(field: FieldDraft, events: int) -> bool:
    return 1 < len(field.column.distinct) <= events / 2 and field.empty <= events / 2
