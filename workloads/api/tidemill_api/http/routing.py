"""A plain route that leaves itself in the scope, where the request's metrics look for its template."""

from __future__ import annotations

from starlette.routing import Match, Route
from starlette.types import Scope


class TemplateRoute(Route):
    """FastAPI's router notes only its own kind of route; this one notes itself."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether, and with which parameters, a request is this route's."""
        match, child = super().matches(scope)
        return match, child if match is Match.NONE else {**child, "route": self}
