"""The query of a live connection: aggregations, filters on group columns, and the token to resume from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tidemill_api.catalog import PipelineModel
from tidemill_api.live.change import RowFilter
from tidemill_api.live.progress import Position, read_token
from tidemill_api.query.parameters import Parameters
from tidemill_api.query.selection import parse_filters
from tidemill_chassis.web.problems import bad_parameter

RESERVED = ("aggregations", "resume")


@dataclass(frozen=True)
class LiveQuery:
    """The query of a live connection.

    Attributes:
        row_filters: the filters of each aggregation that the client wants.
        resume: the position from which each aggregation resumes, or None to send snapshots first.
    """

    row_filters: Mapping[str, RowFilter]
    resume: Mapping[str, Position] | None = None


def parse_live_query(model: PipelineModel, parameters: Parameters, last_event_id: str | None = None) -> LiveQuery:
    """Return the live query of a request.

    Raises:
        Problem: an aggregation or a column is unknown, or a value is wrong.
    """
    names = parameters.pop_list("aggregations")
    token = parameters.pop_one("resume")
    selected = list(model.aggregations) if names is None else list(dict.fromkeys(names))
    given, unused = parameters.unread, set(parameters.unread)
    row_filters = {}
    for name in selected:
        if name not in model.aggregations:
            detail = f"{model.name} has no aggregation {name!r}; it has {', '.join(model.aggregations)}"
            raise bad_parameter("aggregations", detail)
        copy = Parameters(dict(given), split=True)
        row_filters[name] = RowFilter(tuple(parse_filters(copy, model.aggregations[name].groups, RESERVED)))
        unused &= set(copy.unread)
    columns = dict.fromkeys(column for name in selected for column in model.aggregations[name].groups)
    allowed = [*RESERVED, *columns, "column__in, __ne, __gte, __gt, __lte, __lt, __isnull"]
    Parameters({name: given[name] for name in given if name in unused}, split=True).refuse_unknown(allowed)
    token = last_event_id or token
    return LiveQuery(row_filters, None if token is None else read_token(token))
