"""Checks the access to pipelines."""

from __future__ import annotations

from tidemill_api.catalog import PipelineModel
from tidemill_api.services import Services
from tidemill_chassis.auth import QUERY_READ
from tidemill_chassis.web.problems import not_found


def requires_key(services: Services, name: str) -> bool:
    """Return whether a request for a pipeline of this name needs an API key."""
    config = services.catalog.config(name)
    return services.catalog.has_protected_pipelines if config is None else config.spec.auth.required is not False


def authorized_pipeline(services: Services, name: str, authorization: str | None) -> PipelineModel:
    """Check the API key, and return the pipeline.

    Raises:
        Unauthorized: the API key is missing or wrong.
        Forbidden: the key is valid, but lacks the scope.
        Problem: the pipeline does not exist (404).
    """
    config = services.catalog.config(name)
    if config is not None:
        services.authenticator.check(config, authorization, QUERY_READ)
    elif services.catalog.has_protected_pipelines:
        services.authenticator.refuse(authorization)
    model = services.catalog.find(name)
    if model is None:
        raise not_found("pipeline_not_found", "no pipeline of that name is served here; see /v1/pipelines")
    return model
