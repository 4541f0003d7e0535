"""The query of a live connection: aggregations, filters on group columns, and the token to resume from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tidemill_api.catalog import PipelineModel
from tidemill_api.live.change import RowFilter
from tidemill_api.live.progress import Mark, read_token
from tidemill_api.query.parameters import Parameters
from tidemill_api.query.selection import take_filters
from tidemill_chassis.web.problems import bad_parameter

RESERVED = ("aggregations", "resume")


@dataclass(frozen=True)
class LiveQuery:
    """The query of a live connection.

    Attributes:
        wanted: the filters of each aggregation that the client wants.
        resume: the position from which each aggregation resumes, or None to send snapshots first.
    """

    wanted: Mapping[str, RowFilter]
    resume: Mapping[str, Mark] | None = None


def take_live(model: PipelineModel, parameters: Parameters, last_event_id: str | None = None) -> LiveQuery:
    """Return the live query of a request.

    Raises:
        Problem: an aggregation or a column is unknown, or a value is wrong.
    """
    names = parameters.many("aggregations")
    token = parameters.one("resume")
    chosen = list(model.aggregations) if names is None else list(dict.fromkeys(names))
    given, unused = parameters.given, set(parameters.given)
    wanted = {}
    for name in chosen:
        if name not in model.aggregations:
            detail = f"{model.name} has no aggregation {name!r}; it has {', '.join(model.aggregations)}"
            raise bad_parameter("aggregations", detail)
        copy = Parameters(dict(given), split=True)
        wanted[name] = RowFilter(tuple(take_filters(copy, model.aggregations[name].groups, RESERVED)))
        unused &= set(copy.given)
    columns = dict.fromkeys(column for name in chosen for column in model.aggregations[name].groups)
    allowed = [*RESERVED, *columns, "column__in, __ne, __gte, __gt, __lte, __lt, __isnull"]
    Parameters({name: given[name] for name in given if name in unused}, split=True).refuse_rest(allowed)
    token = last_event_id or token
    return LiveQuery(wanted, None if token is None else read_token(token))
