"""What a live connection asks for: aggregations, filters on their groups, and where to resume."""

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
    """What a listener wants.

    Attributes:
        wanted: filters by aggregation.
        resume: marks by aggregation; None: from a snapshot on.
    """

    wanted: Mapping[str, RowFilter]
    resume: Mapping[str, Mark] | None = None


def take_live(model: PipelineModel, parameters: Parameters, last_event_id: str | None = None) -> LiveQuery:
    """The wish in a request's parameters.

    A filter goes for the aggregations that have its column. A token that cannot be read means a gap, not a fault: a
    client that reconnects by itself would repeat it for ever.

    Args:
        model: the pipeline.
        parameters: of the request.
        last_event_id: the token of a reconnecting event source; it is newer than the one in its address.

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
    known = [*RESERVED, *columns, "column__in, __ne, __gte, __gt, __lte, __lt, __isnull"]
    Parameters({name: given[name] for name in given if name in unused}, split=True).refuse_rest(known)
    token = last_event_id or token
    return LiveQuery(wanted, None if token is None else read_token(token))
