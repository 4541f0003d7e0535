"""Queries over windows of an aggregation, and the parameters of these queries."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace

from tidemill_api.catalog import AggregationModel
from tidemill_api.query.buckets import Bucket, take_bucket
from tidemill_api.query.parameters import Member, Parameters
from tidemill_api.query.selection import Column, Filter, Page, take_filters, take_page
from tidemill_api.query.values import EPOCH, parse_time, parse_value
from tidemill_chassis.web.problems import Problem, bad_parameter

DEFAULT_LIMIT, MAX_LIMIT, MAX_STREAM_ROWS = 1_000, 10_000, 10_000_000
MAX_FILL_POINTS, MAX_FILL_ROWS = 100_000, 1_000_000
"""With `fill`, MAX_FILL_POINTS limits the windows of one group, and MAX_FILL_ROWS those of all groups together."""
RESERVED = (
    "from", "to", "granularity", "tz", "fill", "group_by", "metrics", "closed", "decimals", "order", "limit", "cursor",
)  # fmt: skip
_TEXT, _NAMES = Member((str,), "text"), Member((str,), "a list of names", listed=True)
_TIME = Member((str, int), "RFC 3339 as text, or epoch milliseconds as a number")
DECIMALS = ("string", "number")
MEMBERS = {
    **dict.fromkeys(("granularity", "tz", "fill", "decimals", "cursor"), _TEXT),
    **dict.fromkeys(("group_by", "metrics", "order"), _NAMES),
    **dict.fromkeys(("from", "to"), _TIME),
    "closed": Member((bool,), "true or false"),
    "limit": Member((int,), "a whole number"),
}
"""Allowed types of the members in a JSON body."""
_TIMES = {name: Column(name, "timestamp", nullable=False) for name in ("window_start", "window_end")}


@dataclass(frozen=True)
class AggregateQuery:
    """A query over windows of an aggregation.

    Attributes:
        bucket: the roll-up into longer windows, or None to return the stored windows.
        fill: the value of metrics in empty windows, or `none` to leave out empty windows.
        closed: True for closed windows only, False for open windows only, or None for all windows.
        having: filters on metrics.
    """

    model: AggregationModel
    group_by: tuple[str, ...]
    metrics: tuple[str, ...]
    since: dt.datetime | None
    until: dt.datetime | None
    bucket: Bucket | None
    fill: str
    closed: bool | None
    filters: tuple[Filter, ...]
    having: tuple[Filter, ...]
    page: Page
    numbers: bool = False

    @property
    def columns(self) -> list[Column]:
        """The columns of the answer, in their order."""
        groups = [self.model.groups[name] for name in self.group_by]
        metrics = [self.model.metrics[name][0] for name in self.metrics]
        columns = [*groups, *_TIMES.values(), Column("closed", "boolean", nullable=False), *metrics]
        return [replace(column, numbers=True) for column in columns] if self.numbers else columns

    @property
    def key(self) -> str:
        """The cache key, which is the same for queries with the same answer."""
        return repr((self.page.fingerprint, self.page.limit, self.page.after, self.numbers))

    @property
    def fill_points(self) -> int:
        """The number of windows that each group has if `fill` adds all windows between `from` and `to`."""
        if self.since is None or self.until is None:
            return 0
        step = self.model.layout.pane_ms if self.bucket is None else self.bucket.least_ms or 1
        return -((self.since - self.until) // dt.timedelta(milliseconds=step))

    @property
    def natural(self) -> bool:
        """Whether the answer has the stored windows as they are, without roll-up over time or groups."""
        return self.bucket is None and self.group_by == tuple(self.model.groups)

    def final_by(self, closed_until_ms: int | None) -> bool:
        """Return whether later events cannot change the answer."""
        if closed_until_ms is None or self.until is None or self.model.spec.late_policy == "reopen":
            return False
        plan = self.model.layout
        # Windows that contain a stored row end at most `size_ms` after the row's `window_start`.
        reach = 0 if self.bucket is None else self.bucket.reach_ms
        last = (self.until - EPOCH) // dt.timedelta(milliseconds=1) + reach + plan.size_ms
        return last <= closed_until_ms


def take_query(model: AggregationModel, parameters: Parameters, *, stream: bool = False) -> AggregateQuery:
    """Return the query of a request.

    Raises:
        Problem: a parameter is unknown or wrong.
    """
    given = Parameters(dict(parameters.given), split=True)
    group_by = _take_group_by(model, parameters)
    _refuse_session_roll_up(model, given, group_by)
    metrics = _take_metrics(model, parameters)
    since, until = parameters.parsed("from", parse_time), parameters.parsed("to", parse_time)
    if since is not None and until is not None and since >= until:
        raise bad_parameter("to", "the end must be later than the start (the parameter from)")
    bucket = take_bucket(parameters.one("granularity"), parameters.one("tz"), model.layout)
    fill = parameters.choice("fill", ("none", "null", "zero")) or "none"
    closed = parameters.parsed("closed", lambda text: bool(parse_value(text, "boolean")))
    numbers = parameters.choice("decimals", DECIMALS) == "number"
    # The parameter `a__lt=1` means `a < 1`, unless a metric is named `a__lt`.
    answered = model.groups | {name: column for name, (column, _) in model.metrics.items()}
    given_filters = take_filters(parameters, answered, RESERVED)
    filters = [wanted for wanted in given_filters if wanted.column in model.groups]
    having = [wanted for wanted in given_filters if wanted.column not in model.groups]
    shown = {name: model.groups[name] for name in group_by} | _TIMES
    columns = shown | {name: model.metrics[name][0] for name in metrics}
    identity = (
        model.name, model.version, group_by, metrics, since, until, bucket, fill, closed, filters, having,
    )  # fmt: skip
    most = MAX_STREAM_ROWS if stream else MAX_LIMIT
    page = take_page(
        parameters,
        columns,
        default_order=[("window_start", False)],
        unique=["window_start", *group_by],
        default_limit=most if stream else DEFAULT_LIMIT,
        max_limit=most,
        fingerprint=repr(identity),
    )
    allowed = [*RESERVED, *model.groups, *model.metrics, "column__eq, __ne, __in, __gte, __gt, __lte, __lt, __isnull"]
    parameters.refuse_rest(allowed)
    query = AggregateQuery(
        model, group_by, metrics, since, until, bucket, fill, closed, tuple(filters), tuple(having), page, numbers
    )
    _check_fill(query)
    return query


def _take_group_by(model: AggregationModel, parameters: Parameters) -> tuple[str, ...]:
    wanted = parameters.many("group_by")
    if wanted is None:
        return tuple(model.groups)
    names = [name for name in wanted if name]
    for name in names:
        if name not in model.groups:
            dimensions = ", ".join(model.groups) or "none"
            raise bad_parameter(
                "group_by", f"{name!r} is not a dimension of {model.name}; the dimensions are: {dimensions}"
            )
    return tuple(name for name in model.groups if name in names)


def _take_metrics(model: AggregationModel, parameters: Parameters) -> tuple[str, ...]:
    wanted = parameters.many("metrics")
    if wanted is None:
        return tuple(model.metrics)
    for name in wanted:
        if name not in model.metrics:
            raise bad_parameter(
                "metrics", f"{name!r} is not a metric of {model.name}; the metrics are: {', '.join(model.metrics)}"
            )
    return tuple(dict.fromkeys(wanted))


def _refuse_session_roll_up(model: AggregationModel, parameters: Parameters, group_by: tuple[str, ...]) -> None:
    if not model.layout.sessions:
        return
    why = f"{model.name} has session windows, which cannot be combined, because their times differ in each group"
    for name in ("granularity", "tz"):
        if parameters.given.get(name):
            raise bad_parameter(name, f"{why}; leave {name} out, or query an aggregation with tumbling windows")
    if group_by != tuple(model.groups):
        raise bad_parameter("group_by", f"{why}; leave group_by out, or filter by a dimension")
    if parameters.given.get("fill", ["none"]) != ["none"]:
        raise bad_parameter("fill", f"{model.name} has session windows, which fill does not support; leave fill out")


def _check_fill(query: AggregateQuery) -> None:
    if query.fill == "none":
        return
    if query.since is None or query.until is None:
        raise bad_parameter("fill", "fill adds windows between from and to; give both parameters")
    if query.having or (query.bucket is not None and query.bucket.grid is None):
        raise bad_parameter(
            "fill", "this parameter cannot be combined with filters on metrics or granularity=all; leave fill out"
        )
    if query.fill_points > MAX_FILL_POINTS:
        raise bad_parameter(
            "fill",
            f"there are {query.fill_points} windows between from and to; at most {MAX_FILL_POINTS} are allowed:"
            " narrow the range",
        )


def too_filled(query: AggregateQuery, groups: int) -> Problem:
    """Return the problem (400) for a query in which `fill` adds too many rows."""
    rows = groups * query.fill_points
    return bad_parameter(
        "fill",
        f"{groups} groups and {query.fill_points} windows between from and to make {rows} rows; at most"
        f" {MAX_FILL_ROWS} are allowed: narrow from and to, filter by a dimension, or use a longer granularity"
        " or fewer dimensions in group_by",
    )
