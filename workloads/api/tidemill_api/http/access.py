"""Who may ask a pipeline. Beside pipelines that want keys, a name that does not exist is refused as theirs are."""

from __future__ import annotations

from tidemill_api.catalog import PipelineModel
from tidemill_api.services import Services
from tidemill_chassis.auth import QUERY_READ
from tidemill_chassis.web.problems import not_found


def wants_key(services: Services, name: str) -> bool:
    """Whether who asks for this name has to send a key."""
    config = services.catalog.config(name)
    return services.catalog.guarded if config is None else config.spec.auth.required is not False


def open_pipeline(services: Services, name: str, authorization: str | None) -> PipelineModel:
    """The pipeline of that name, for the bearer of a key.

    Raises:
        Unauthorized: no good key; the same where there is no such pipeline, but others that want keys.
        Forbidden: the key is good, but not for this.
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
