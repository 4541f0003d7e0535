"""Tests of API queries: parameters, roll-ups, cursors, SQL, and cache keys."""

from __future__ import annotations

import base64
import datetime as dt
import random
import re
from typing import Any

import msgspec
import pytest

from tidemill_api.catalog import AggregationModel
from tidemill_api.http.openapi_parameters import GRANULARITY
from tidemill_api.query.aggregate import AggregateQuery, parse_query
from tidemill_api.query.parameters import Parameters
from tidemill_api.query.selection import Binder
from tidemill_api.query.sql import horizon_sql, limit_to_horizon, narrow_to_cursor, statement
from tidemill_chassis.web.problems import Problem
from tidemill_contract.calendars import MONDAY, Calendar
from tidemill_contract.duration import min_length_ms
from tidemill_contract.functions.partials import build_layout
from tidemill_contract.grids import Steps
from tidemill_contract.resource.spec import AggregationSpec

TYPES = {"k": "string", "i": "integer", "v": "number", "b": "boolean", "t": "timestamp"}
DAY = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


def model(window: dict[str, Any] | None = None, **fields: Any) -> AggregationModel:
    spec = AggregationSpec.model_validate(
        {
            "name": "agg",
            "groupBy": ["k", "i"],
            "window": window or {"type": "tumbling", "size": "1h"},
            "metrics": [
                {"name": "n", "function": "count"},
                {"name": "mean", "function": "avg", "field": "v"},
                {"name": "top", "function": "max", "field": "i"},
            ],
            **fields,
        }
    )
    return AggregationModel(spec, 1, build_layout(spec, TYPES), '"s"."agg_v1"')


HOPPING = {"type": "hopping", "size": "3h", "hop": "1h"}


def query(text: str, of: AggregationModel | None = None) -> AggregateQuery:
    return parse_query(of or model(), Parameters.from_query(text.encode()))


REFUSED = [
    ("limit=0", "limit", "whole number from 1 to 10000"),
    ("limit=%2B5", "limit", "whole number"),
    ("limit=٣", "", "percent-encoded"),
    ("from=2026-03-02T00:00:00Z&to=2026-03-01T00:00:00Z", "to", "later than the start"),
    ("from=a", "from", "not a time"),
    ("granularity=90m", "granularity", "not a multiple of the window size 1h"),
    ("granularity=0s", "granularity", "not a multiple"),
    ("granularity=1", "granularity", "not a duration"),
    ("tz=Europe/Berlin", "tz", "granularity=1d"),
    ("granularity=2h&tz=Europe/Berlin", "tz", "whole days"),
    ("granularity=all&tz=Europe/Berlin", "tz", "no meaning"),
    ("granularity=1d&tz=Asia/Kathmandu", "tz", "do not start at multiples of the window size 1h"),
    ("granularity=1d&tz=../../etc/passwd", "tz", "not a time zone"),
    ("granularity=1d&tz=x'", "tz", "not a time zone"),
    ("group_by=v", "group_by", "not a dimension of agg; the dimensions are: k, i"),
    ("metrics=k", "metrics", "not a metric of agg; the metrics are: n, mean, top"),
    ("order=b", "order", "not a column to order by"),
    ("group_by=k&order=i", "order", "not a column to order by"),
    ("order=k,-k", "order", "named twice"),
    ("k__like=a", "k__like", "no such parameter"),
    ("v=1", "v", "no such parameter"),
    ("i=x", "i", "not of type integer"),
    ("i__in=1,x", "i__in", "not of type integer"),
    ("k__isnull=maybe", "k__isnull", "not of type boolean"),
    ("n__in=" + ",".join(["1"] * 1001), "n__in", "at most 1000"),
    ("closed=yes", "closed", "not of type boolean"),
    ("fill=some", "fill", "not one of none, null, zero"),
    ("fill=null&from=0", "fill", "between from and to; give both"),
    ("fill=null&from=0&to=3600000&n=1", "fill", "cannot be combined with filters on metrics"),
    ("fill=null&from=0&to=3600000&granularity=all", "fill", "granularity=all"),
    ("fill=null&from=0&to=999999999999", "fill", "277778 windows between"),
    ("cursor=%F0%9F%8C%8A", "cursor", "not a cursor"),
    ("cursor=AAAA", "cursor", "not a cursor"),
]


@pytest.mark.parametrize(("text", "parameter", "reason"), REFUSED, ids=[case[0][:40] for case in REFUSED])
def test_a_refused_query_names_the_parameter_and_the_remedy(text: str, parameter: str, reason: str) -> None:
    with pytest.raises(Problem) as caught:
        query(text)
    assert caught.value.status == 400
    assert reason in caught.value.detail
    assert caught.value.extra.get("parameter", "") == parameter


OSLO = {"type": "tumbling", "zone": "Europe/Oslo"}
SIX_MS = 6 * 3_600_000
BUCKETS: list[tuple[dict[str, Any] | None, str, Steps | Calendar]] = [
    (None, "granularity=2h", Steps(7_200_000)),
    ({"type": "tumbling", "size": "1h", "offset": "15m"}, "granularity=1d", Steps(86_400_000, 900_000)),
    (None, "granularity=24h&tz=Europe/Oslo", Calendar("day", 1, "Europe/Oslo")),
    (None, "granularity=7d&tz=Europe/Oslo", Calendar("day", 7, "Europe/Oslo")),
    (None, "granularity=1w", Calendar("day", 7, "UTC", 0, MONDAY)),
    (None, "granularity=1mo&tz=UTC", Calendar("month", 1)),
    ({**OSLO, "size": "1d", "offset": "6h"}, "granularity=2d", Calendar("day", 2, "Europe/Oslo", SIX_MS)),
    ({**OSLO, "size": "1d", "offset": "6h"}, "granularity=1q", Calendar("month", 3, "Europe/Oslo", SIX_MS)),
    ({**OSLO, "size": "1d"}, "granularity=1w&tz=Europe/Oslo", Calendar("day", 7, "Europe/Oslo", 0, MONDAY)),
    ({"type": "hopping", "size": "1y", "hop": "1mo"}, "granularity=2y", Calendar("month", 24)),
    ({"type": "tumbling", "size": "2w"}, "granularity=4w", Calendar("day", 28, "UTC", 0, MONDAY)),
]


@pytest.mark.parametrize(("window", "text", "grid"), BUCKETS)
def test_windows_are_rolled_up_to_multiples_and_longer_units(
    window: dict[str, Any] | None, text: str, grid: Steps | Calendar
) -> None:
    parsed = query(text, model(window))
    assert parsed.bucket is not None
    assert parsed.bucket.grid == grid
    statement(parsed, Binder(), DAY)


@pytest.mark.parametrize(
    ("window", "text", "parameter", "reason"),
    [
        (None, "granularity=10y", "granularity", "longer than 3650d"),
        (
            {"type": "tumbling", "size": "7h"},
            "granularity=1w",
            "granularity",
            "does not divide a day",
        ),
        (
            {"type": "tumbling", "size": "2d"},
            "granularity=1mo",
            "granularity",
            "the window size 2d does not divide a day",
        ),
        (
            {**OSLO, "size": "1d"},
            "granularity=24h",
            "granularity",
            "window size 1d; write e.g. 2d",
        ),
        ({**OSLO, "size": "1d"}, "granularity=1d&tz=UTC", "tz", "the windows follow the time zone Europe/Oslo"),
        ({**OSLO, "size": "2d"}, "granularity=1w", "granularity", "not a multiple of the window size 2d"),
        (
            {**OSLO, "size": "2w"},
            "granularity=28d",
            "granularity",
            "window size 2w; write e.g. 4w",
        ),
        ({**OSLO, "size": "1mo"}, "granularity=1w", "granularity", "not a multiple of the window size 1mo"),
        ({**OSLO, "size": "1q"}, "granularity=4mo", "granularity", "not a multiple of the window size 1q"),
        ({**OSLO, "size": "1mo"}, "tz=Europe/Oslo", "tz", "granularity"),
    ],
)
def test_a_granularity_that_calendar_windows_do_not_divide_is_refused(
    window: dict[str, Any] | None, text: str, parameter: str, reason: str
) -> None:
    with pytest.raises(Problem) as caught:
        query(text, model(window))
    assert reason in caught.value.detail
    assert caught.value.extra["parameter"] == parameter


@pytest.mark.parametrize(
    "text",
    [
        "1w",
        "521w",
        "522w",
        "1mo",
        "117mo",
        "118mo",
        "39q",
        "40q",
        "9y",
        "10y",
        "3650d",
        "3651d",
        "01w",
        "1W",
        "1m",
        "0w",
    ],
)
def test_the_pattern_of_granularity_in_openapi_matches_exactly_the_accepted_texts(text: str) -> None:
    try:
        accepted = bool(min_length_ms(text))
    except ValueError:
        accepted = False
    assert bool(re.search(GRANULARITY["pattern"], text)) == accepted


SESSIONS = {"type": "session", "gap": "5m"}


@pytest.mark.parametrize(
    "text", ["granularity=1d", "granularity=all", "tz=UTC", "group_by=k", "group_by=", "fill=null"]
)
def test_roll_ups_of_session_windows_are_refused(text: str) -> None:
    with pytest.raises(Problem) as caught:
        query(text, model(SESSIONS))
    assert caught.value.extra["parameter"] == text.split("=")[0]
    assert "session windows" in caught.value.detail


def test_sessions_can_be_filtered_and_ordered() -> None:
    parsed = query("k=a&n__gte=2&order=-window_end&group_by=k,i&fill=none&closed=true", model(SESSIONS))
    text = statement(parsed, Binder(), DAY)
    assert "window_end > window_start" in text
    assert "interval" not in text.replace("interval '0 milliseconds'", "")


def test_a_query_without_parameters_selects_all_columns_in_the_natural_order() -> None:
    parsed = query("")
    assert [c.name for c in parsed.columns] == ["k", "i", "window_start", "window_end", "closed", "n", "mean", "top"]
    assert [(o.column.name, o.descending) for o in parsed.page.order] == [
        ("window_start", False),
        ("k", False),
        ("i", False),
    ]
    assert (parsed.page.limit, parsed.without_roll_up) == (1_000, True)


def test_columns_that_complete_an_order_have_the_direction_of_its_last_column() -> None:
    parsed = query("order=n,-window_start")
    assert [(o.column.name, o.descending) for o in parsed.page.order] == [
        ("n", False), ("window_start", True), ("k", True), ("i", True),
    ]  # fmt: skip
    assert "NULLS LAST" in parsed.page.order[2].sql


@pytest.mark.parametrize(
    "change",
    ["order=-window_start", "k=a", "metrics=n", "group_by=k", "granularity=1d", "closed=true", "from=0",
     "fill=null&from=0&to=9999999"],
)  # fmt: skip
def test_a_cursor_is_refused_in_another_query(change: str) -> None:
    """The limit may differ. Parameters that change the rows or their order may not."""
    first = query("limit=5")
    cursor = first.page.cursor({"window_start": DAY, "k": None, "i": 7})
    again = query(f"cursor={cursor}&limit=9")
    assert again.page.after == (DAY, None, 7)
    assert again.page.fingerprint == first.page.fingerprint
    with pytest.raises(Problem, match="another query"):
        query(f"cursor={cursor}&{change}")


@pytest.mark.parametrize(
    ("text", "cursor"),
    [
        (
            "k=a&metrics=n&granularity=1d&tz=Europe/Oslo",
            "kwGwYWEzYWUxZjFjNWM2ODA4NpO5MjAyNi0wMy0wMVQwMDowMDowMCswMDowMMChNw",
        ),
        (
            "k__in=a,b&granularity=2h&from=2026-01-01T00:00:00Z&n__gte=3",
            "kwGwOTFkZTAwMWE0YzdjZGI2NpO5MjAyNi0wMy0wMVQwMDowMDowMCswMDowMMChNw",
        ),
    ],
)
def test_a_cursor_of_an_earlier_version_is_accepted(text: str, cursor: str) -> None:
    """A cursor contains a hash of the query's parsed parameters. The names of their classes are part of the hash."""
    assert query(text).page.cursor({"window_start": DAY, "k": None, "i": 7}) == cursor
    assert query(f"{text}&cursor={cursor}").page.after is not None


def test_a_forged_cursor_is_refused_or_selects_rows_of_the_query() -> None:
    page = query("").page
    for values in ([], ["x", "a", "1"], ["9999-12-31T23:59:59.999999+00:00", "a", "b"], ["1", "2", "3", "4"]):
        packed = msgspec.msgpack.encode([1, page.fingerprint, values])
        with pytest.raises(Problem, match="bad_cursor"):
            query("cursor=" + base64.urlsafe_b64encode(packed).decode().rstrip("="))
    for order in ("", "order=-window_start&"):
        edge = query(order).page.cursor({"window_start": dt.datetime.max.replace(tzinfo=dt.UTC), "k": "a", "i": 1})
        narrow_to_cursor(query(f"{order}cursor={edge}"))


def test_values_are_bound_and_never_part_of_the_sql() -> None:
    evil = "'; DROP TABLE x; --"
    parsed = query("k=%27%3B+DROP+TABLE+x%3B+--&k__in=%25s&order=-n&n__gte=5&n__lt=9&closed=true&from=0")
    binder = Binder()
    text = statement(parsed, binder, DAY)
    assert "DROP" not in text
    assert evil in binder.values.values()
    assert re.sub(r"%\(p\d+\)s", "", text).count("%") == 0
    assert text.count("_having_n") == 3, "the column is selected once and compared twice"


def test_a_page_reads_only_the_necessary_range() -> None:
    """A later page starts at its cursor. A page of hopping windows ends where it is certainly full."""
    hops = model(HOPPING)
    plain = query("limit=10", hops)
    horizon = horizon_sql(plain, Binder())
    assert horizon is not None
    assert "OFFSET 11 LIMIT 1" in horizon
    assert limit_to_horizon(plain, DAY).until == DAY + dt.timedelta(milliseconds=1)
    assert limit_to_horizon(query("order=-window_start", hops), DAY).since == DAY
    for text in ("order=n", "n__gte=1", "closed=true", "fill=null&from=0&to=3600000", "group_by=k"):
        assert horizon_sql(query(text, hops), Binder()) is None, text
    later = query(f"cursor={plain.page.cursor({'window_start': DAY, 'k': 'a', 'i': 1})}", hops)
    assert narrow_to_cursor(later).since == DAY
    assert narrow_to_cursor(plain) is plain


HOUR_MS = 3_600_000
DAY_MS = int(DAY.timestamp() * 1000)
FINAL = [
    ("to=2026-03-01T00:00:00Z", None, DAY_MS + HOUR_MS, "the last window ends an hour after its start"),
    ("to=2026-03-01T00:00:00Z&granularity=1d", None, DAY_MS + 25 * HOUR_MS, "the last day may begin just before `to`"),
    ("to=2026-03-01T00:00:00Z", HOPPING, DAY_MS + 3 * HOUR_MS, "a window lasts three hours"),
]


@pytest.mark.parametrize(("text", "window", "closed_until", "reason"), FINAL, ids=[case[3] for case in FINAL])
def test_an_answer_is_final_if_no_event_can_change_the_answer(
    text: str, window: dict[str, Any] | None, closed_until: int, reason: str
) -> None:
    parsed = query(text, model(window))
    assert parsed.is_final(closed_until), reason
    assert not parsed.is_final(closed_until - 1)
    assert not parsed.is_final(None)
    assert not query("").is_final(closed_until * 2), "without `to`, new windows are added"
    reopened = query(text, model(window, latePolicy="reopen"))
    assert not reopened.is_final(closed_until * 2), "closed windows may be opened again"


def test_keys_of_queries_are_equal_exactly_if_the_queries_are() -> None:
    """The order of parameters does not matter."""
    texts = [
        "", "limit=5", "k=a", "k=b", "k__ne=a", "i=1", "granularity=1d", "granularity=1d&tz=Europe/Berlin", "group_by=",
        "group_by=k", "metrics=n", "order=-window_start", "closed=true", "closed=false", "from=0", "to=0",
    ]  # fmt: skip
    assert len({query(text).key for text in texts}) == len(texts)
    parts = ["k=a", "limit=7", "order=n", "from=5", "closed=true"]
    shuffled = parts.copy()
    random.Random(3).shuffle(shuffled)
    assert query("&".join(parts)).key == query("&".join(shuffled)).key
