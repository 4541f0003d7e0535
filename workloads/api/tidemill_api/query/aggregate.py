"""Queries over windows of an aggregation, and the parameters of these queries."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace

from tidemill_api.catalog import AggregationModel
from tidemill_api.query.buckets import Bucket, parse_bucket
from tidemill_api.query.parameters import BodyMember, Parameters
from tidemill_api.query.selection import Column, Filter, Page, parse_filters, parse_page
from tidemill_api.query.values import EPOCH, parse_time, parse_value
from tidemill_chassis.web.problems import Problem, bad_parameter

DEFAULT_LIMIT, MAX_LIMIT, MAX_STREAM_ROWS = 1_000, 10_000, 10_000_000
MAX_FILL_WINDOWS, MAX_FILL_ROWS = 100_000, 1_000_000
"""With `fill`, MAX_FILL_WINDOWS limits the windows of one group, and MAX_FILL_ROWS those of all groups together."""
RESERVED = (
    "from", "to", "granularity", "tz", "fill", "group_by", "metrics", "closed", "decimals", "order", "limit", "cursor",
)  # fmt: skip
_TEXT, _NAMES = BodyMember((str,), "text"), BodyMember((str,), "a list of names", is_list=True)
_TIME = BodyMember((str, int), "RFC 3339 as text, or epoch milliseconds as a number")
DECIMALS = ("string", "number")
MEMBERS = {
    **dict.fromkeys(("granularity", "tz", "fill", "decimals", "cursor"), _TEXT),
    **dict.fromkeys(("group_by", "metrics", "order"), _NAMES),
    **dict.fromkeys(("from", "to"), _TIME),
    "closed": BodyMember((bool,), "true or false"),
    "limit": BodyMember((int,), "a whole number"),
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
    decimals_as_numbers: bool = False

    @property
    def columns(self) -> list[Column]:
        """The columns of the answer, in their order."""
        groups = [self.model.groups[name] for name in self.group_by]
        metrics = [self.model.metrics[name][0] for name in self.metrics]
        columns = [*groups, *_TIMES.values(), Column("closed", "boolean", nullable=False), *metrics]
        if not self.decimals_as_numbers:
            return columns
        return [replace(column, decimals_as_numbers=True) for column in columns]

    @property
    def key(self) -> str:
        """The cache key, which is the same for queries with the same answer."""
        return repr((self.page.fingerprint, self.page.limit, self.page.after, self.decimals_as_numbers))

    @property
    def windows_per_group(self) -> int:
        """The number of windows that each group has if `fill` adds all windows between `from` and `to`."""
        if self.since is None or self.until is None:
            return 0
        step = self.model.layout.pane_ms if self.bucket is None else self.bucket.least_ms or 1
        return -((self.since - self.until) // dt.timedelta(milliseconds=step))

    @property
    def without_roll_up(self) -> bool:
        """Whether the answer has the stored windows, without roll-up over time or groups."""
        return self.bucket is None and self.group_by == tuple(self.model.groups)

    def is_final(self, closed_until_ms: int | None) -> bool:
        """Return whether later events cannot change the answer."""
        if closed_until_ms is None or self.until is None or self.model.spec.late_policy == "reopen":
            return False
        layout = self.model.layout
        # Windows that contain a stored row end at most `size_ms` after the row's `window_start`.
        bucket_ms = 0 if self.bucket is None else self.bucket.reach_ms
        last_end_ms = (self.until - EPOCH) // dt.timedelta(milliseconds=1) + bucket_ms + layout.size_ms
        return last_end_ms <= closed_until_ms


def parse_query(model: AggregationModel, parameters: Parameters, *, stream: bool = False) -> AggregateQuery:
    """Return the query of a request.

    Raises:
        Problem: a parameter is unknown or wrong.
    """
    all_parameters = Parameters(dict(parameters.unread), split=True)
    group_by = _parse_group_by(model, parameters)
    _refuse_session_roll_up(model, all_parameters, group_by)
    metrics = _parse_metrics(model, parameters)
    since, until = parameters.pop_parsed("from", parse_time), parameters.pop_parsed("to", parse_time)
    if since is not None and until is not None and since >= until:
        raise bad_parameter("to", "the end must be later than the start (the parameter from)")
    bucket = parse_bucket(parameters.pop_one("granularity"), parameters.pop_one("tz"), model.layout)
    fill = parameters.pop_choice("fill", ("none", "null", "zero")) or "none"
    closed = parameters.pop_parsed("closed", lambda text: bool(parse_value(text, "boolean")))
    as_numbers = parameters.pop_choice("decimals", DECIMALS) == "number"
    # The parameter `a__lt=1` means `a < 1`, unless a metric is named `a__lt`.
    filterable = model.groups | {name: column for name, (column, _) in model.metrics.items()}
    given_filters = parse_filters(parameters, filterable, RESERVED)
    filters = [column_filter for column_filter in given_filters if column_filter.column in model.groups]
    having = [column_filter for column_filter in given_filters if column_filter.column not in model.groups]
    key_columns = {name: model.groups[name] for name in group_by} | _TIMES
    columns = key_columns | {name: model.metrics[name][0] for name in metrics}
    identity = (
        model.name, model.version, group_by, metrics, since, until, bucket, fill, closed, filters, having,
    )  # fmt: skip
    max_rows = MAX_STREAM_ROWS if stream else MAX_LIMIT
    page = parse_page(
        parameters,
        columns,
        default_order=[("window_start", False)],
        unique=["window_start", *group_by],
        default_limit=max_rows if stream else DEFAULT_LIMIT,
        max_limit=max_rows,
        fingerprint=repr(identity),
    )
    allowed = [*RESERVED, *model.groups, *model.metrics, "column__eq, __ne, __in, __gte, __gt, __lte, __lt, __isnull"]
    parameters.refuse_unknown(allowed)
    query = AggregateQuery(
        model, group_by, metrics, since, until, bucket, fill, closed, tuple(filters), tuple(having), page, as_numbers
    )
    _check_fill(query)
    return query


def _parse_group_by(model: AggregationModel, parameters: Parameters) -> tuple[str, ...]:
    requested = parameters.pop_list("group_by")
    if requested is None:
        return tuple(model.groups)
    names = [name for name in requested if name]
    for name in names:
        if name not in model.groups:
            dimensions = ", ".join(model.groups) or "none"
            raise bad_parameter(
                "group_by", f"{name!r} is not a dimension of {model.name}; the dimensions are: {dimensions}"
            )
    return tuple(name for name in model.groups if name in names)


def _parse_metrics(model: AggregationModel, parameters: Parameters) -> tuple[str, ...]:
    requested = parameters.pop_list("metrics")
    if requested is None:
        return tuple(model.metrics)
    for name in requested:
        if name not in model.metrics:
            raise bad_parameter(
                "metrics", f"{name!r} is not a metric of {model.name}; the metrics are: {', '.join(model.metrics)}"
            )
    return tuple(dict.fromkeys(requested))


def _refuse_session_roll_up(model: AggregationModel, parameters: Parameters, group_by: tuple[str, ...]) -> None:
    if not model.layout.has_sessions:
        return
    reason = f"{model.name} has session windows, which cannot be combined, because their times differ in each group"
    for name in ("granularity", "tz"):
        if parameters.unread.get(name):
            raise bad_parameter(name, f"{reason}; leave {name} out, or query an aggregation with tumbling windows")
    if group_by != tuple(model.groups):
        raise bad_parameter("group_by", f"{reason}; leave group_by out, or filter by a dimension")
    if parameters.unread.get("fill", ["none"]) != ["none"]:
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
    if query.windows_per_group > MAX_FILL_WINDOWS:
        raise bad_parameter(
            "fill",
            f"there are {query.windows_per_group} windows between from and to; at most {MAX_FILL_WINDOWS} are allowed:"
            " narrow the range",
        )


def fill_problem(query: AggregateQuery, groups: int) -> Problem:
    """Return the problem (400) for a query in which `fill` adds too many rows."""
    rows = groups * query.windows_per_group
    return bad_parameter(
        "fill",
        f"{groups} groups and {query.windows_per_group} windows between from and to make {rows} rows; at most"
        f" {MAX_FILL_ROWS} are allowed: narrow from and to, filter by a dimension, or use a longer granularity"
        " or fewer dimensions in group_by",
    )
