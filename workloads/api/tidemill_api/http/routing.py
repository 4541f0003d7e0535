"""A route that HTTP metrics can identify by its path template."""

from __future__ import annotations

from starlette.routing import Match, Route
from starlette.types import Scope


class TemplateRoute(Route):
    """A route that stores itself in the ASGI scope as `route`."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match the route with a request. Return the result, and the scope with the path's parameters."""
        match, child = super().matches(scope)
        return match, child if match is Match.NONE else {**child, "route": self}
