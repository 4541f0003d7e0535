"""Checks the access to pipelines.

If any pipeline requires a key, a request for an unknown pipeline gets the same answer as one with a wrong key, so that
nobody can find out the names of pipelines.
"""

from __future__ import annotations

from tidemill_api.catalog import PipelineModel
from tidemill_api.services import Services
from tidemill_chassis.auth import QUERY_READ
from tidemill_chassis.web.problems import not_found


def wants_key(services: Services, name: str) -> bool:
    """Whether a request for a pipeline of this name has to send a key."""
    config = services.catalog.config(name)
    return services.catalog.guarded if config is None else config.spec.auth.required is not False


def open_pipeline(services: Services, name: str, authorization: str | None) -> PipelineModel:
    """Return a pipeline, after checking the API key.

    Raises:
        Unauthorized: the key is missing or wrong, or there is no such pipeline while other pipelines require keys.
        Forbidden: the key is valid, but lacks the scope.
        Problem: there is no such pipeline (404).
    """
    config = services.catalog.config(name)
    if config is not None:
        services.authenticator.check(config, authorization, QUERY_READ)
    elif services.catalog.guarded:
        services.authenticator.refuse(authorization)
    model = services.catalog.find(name)
    if model is None:
        raise not_found("pipeline_not_found", "no pipeline of that name is served here; see /v1/pipelines")
    return model
