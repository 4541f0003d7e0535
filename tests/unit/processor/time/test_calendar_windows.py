"""Tests of windows by the calendar and with an offset, by comparison with the model of the tests."""

from __future__ import annotations

import datetime as dt
import random
import zoneinfo
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from kafka_records import records
from oracle.events import Event
from oracle.model import NO_CUT, Entry, Version
from tidemill_contract.functions.partials import AggregationLayout, build_layout
from tidemill_contract.resource.spec import AnomalySpec, PipelineSpec
from tidemill_contract.times import epoch_ms, rfc3339_ms
from tidemill_processor.batches.reader import BatchReader
from tidemill_processor.detect.scanning import Scanner
from tidemill_processor.merge.aggregate import Aggregated, aggregate, missed_windows
from tidemill_processor.time.watermark import closed_until

NOW_MS = 1_790_000_000_000
CHANGE_MS = 1_774_746_000_000
"""2026-03-29T01:00:00Z. At this time, clocks in Oslo change from 02:00 to 03:00."""
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
OSLO = "Europe/Oslo"
WINDOWS: list[dict[str, Any]] = [
    {"type": "tumbling", "size": "1h", "offset": "17m"},
    {"type": "hopping", "size": "6h", "hop": "2h", "offset": "90m"},
    {"type": "tumbling", "size": "1d"},
    {"type": "tumbling", "size": "1d", "zone": OSLO},
    {"type": "tumbling", "size": "1d", "zone": OSLO, "offset": "2h"},
    {"type": "tumbling", "size": "1w"},
    {"type": "tumbling", "size": "1w", "zone": OSLO, "offset": "146h"},
    {"type": "hopping", "size": "3d", "hop": "1d", "zone": OSLO, "offset": "150m"},
]


def aggregation(window: dict[str, Any], **further: Any) -> dict[str, Any]:
    return {"name": "a", "window": window, "metrics": [{"name": "n", "function": "count"}], **further}


def pipeline(window: dict[str, Any], **further: Any) -> PipelineSpec:
    source = {"fields": [{"name": "ts", "type": "timestamp"}], "topic": {"partitions": 1}, "eventTime": {"field": "ts"}}
    return PipelineSpec.model_validate({"source": source, "aggregations": [aggregation(window, **further)]})


def counted(
    window: dict[str, Any], times: list[int], closed: int | None = None, **further: Any
) -> tuple[AggregationLayout, Aggregated]:
    """Return events as a processor aggregates them."""
    spec = pipeline(window, **further)
    layout = build_layout(spec.aggregations[0], {})
    frame = BatchReader(spec).read(records(*({"ts": ts} for ts in times)), NOW_MS).frame
    return layout, aggregate(frame, layout, closed_until=closed, epochs={})


def windows_of(layout: AggregationLayout, aggregated: Aggregated) -> Counter[int]:
    """Return the number of events of each window, by the window's start."""
    counts: Counter[int] = Counter()
    after = aggregated.rows["_after_ms"].to_list() if layout.is_hopping else [NO_CUT] * aggregated.rows.height
    for pane, count, cut in zip(aggregated.rows["_pane"], aggregated.rows["_count"], after, strict=True):
        starts = [layout.grid.shift(pane, -back) for back in range(layout.panes)]
        counts.update({start: count for start in starts if layout.end_of(start) > cut})
    return counts


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("reopens", [False, True])
def test_events_are_in_the_same_windows_and_late_as_in_the_model(window: dict[str, Any], reopens: bool) -> None:
    """The events are around a clock change, and different windows are closed."""
    rnd = random.Random(7)
    further = {"latePolicy": "reopen", "retention": "30d"} if reopens else {}
    version = Version(aggregation(window, **further), 1)
    for closed in (None, *(version.clock.floor(CHANGE_MS + hours * HOUR_MS) for hours in (-40, 0, 1, 30))):
        times = [CHANGE_MS + rnd.randint(-4 * DAY_MS, 4 * DAY_MS) for _ in range(400)] + [CHANGE_MS, CHANGE_MS - 1]
        plan, aggregated = counted(window, times, closed, **further)
        version.closed = closed
        expected: Counter[int] = Counter()
        late = []
        for index, time in enumerate(times):
            missed = version.end_of(time) <= version.shut
            late += [index] if missed else []
            expected.update(version.starts(Entry(Event(0, 0, b"", time), {}, version.shut if missed else NO_CUT, 0)))
        assert windows_of(plan, aggregated) == expected
        assert aggregated.late["_i"].to_list() == late
        for pane in aggregated.late["_pane"].unique():
            missed_starts = missed_windows(pane, plan, version.shut)
            assert missed_starts
            assert all(plan.end_of(start) <= version.shut for start in missed_starts)
            assert plan.end_of(plan.grid.shift(missed_starts[-1], 1)) > version.shut or missed_starts[-1] == pane
        reopening = sum(version.end_of(time) <= (closed or 0) for time in times) if reopens else 0
        assert aggregated.reopening_count == reopening


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ({"size": "1d", "zone": OSLO}, ("2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z")),
        ({"size": "1d", "zone": OSLO, "offset": "2h"}, ("2026-03-29T01:00:00Z", "2026-03-30T00:00:00Z")),
        ({"size": "1d", "zone": OSLO, "offset": "6h"}, ("2026-03-28T05:00:00Z", "2026-03-29T04:00:00Z")),
        ({"size": "1w", "zone": OSLO}, ("2026-03-22T23:00:00Z", "2026-03-29T22:00:00Z")),
        ({"size": "1w", "zone": OSLO, "offset": "6d"}, ("2026-03-28T23:00:00Z", "2026-04-04T22:00:00Z")),
        ({"size": "1mo", "zone": OSLO}, ("2026-02-28T23:00:00Z", "2026-03-31T22:00:00Z")),
        ({"size": "1mo"}, ("2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z")),
        ({"size": "1q", "zone": OSLO, "offset": "12h"}, ("2026-01-01T11:00:00Z", "2026-04-01T10:00:00Z")),
        ({"size": "1y", "zone": "America/New_York"}, ("2026-01-01T05:00:00Z", "2027-01-01T05:00:00Z")),
        ({"size": "1h", "offset": "30m"}, ("2026-03-29T00:30:00Z", "2026-03-29T01:30:00Z")),
    ],
)
def test_a_window_starts_and_ends_at_the_times_of_the_calendar(
    window: dict[str, str], expected: tuple[str, str]
) -> None:
    plan, aggregated = counted({"type": "tumbling", **window}, [CHANGE_MS])
    (start,) = aggregated.rows["_pane"]
    assert (rfc3339_ms(start), rfc3339_ms(plan.end_of(start))) == expected
    # The window closes when the watermark reaches its end, and no earlier.
    assert closed_until(plan.end_of(start), grace_ms=0, grid=plan.grid) == plan.end_of(start)
    assert closed_until(plan.end_of(start) - 1, grace_ms=0, grid=plan.grid) == start


def test_a_year_of_events_is_counted_by_local_days() -> None:
    rnd, zone = random.Random(3), zoneinfo.ZoneInfo("America/New_York")
    times = [CHANGE_MS - rnd.randrange(400 * DAY_MS) for _ in range(2_000)]
    _, aggregated = counted({"type": "tumbling", "size": "1d", "zone": "America/New_York"}, times)
    days = Counter(dt.datetime.fromtimestamp(time / 1000, zone).date() for time in times)
    starts = {epoch_ms(dt.datetime(day.year, day.month, day.day, tzinfo=zone)): count for day, count in days.items()}
    assert dict(aggregated.rows.select("_pane", "_count").rows()) == starts


def test_detectors_use_the_local_hours_of_the_windows_zone() -> None:
    """Days in Oslo start at 23:00 UTC in winter and at 22:00 in summer, always at local hour 0."""
    rule = {"name": "r", "aggregation": "a", "metric": "n", "detector": {"type": "seasonal"}}
    plan, aggregated = counted({"type": "tumbling", "size": "1d", "zone": OSLO}, [CHANGE_MS])
    scanner: Any = SimpleNamespace(_store=SimpleNamespace(layout=plan))
    state: dict[str, Any] = {}
    for days in range(-10, 10):
        start = plan.grid.shift(aggregated.rows["_pane"][0], days)
        window: Any = SimpleNamespace(metrics={"n": 5}, start_ms=start)
        _, state = Scanner._judge(scanner, AnomalySpec.model_validate(rule), state, window, [])
    assert [hour for hour, usual in enumerate(state["rhythm"]["usual"]) if usual is not None] == [0]
