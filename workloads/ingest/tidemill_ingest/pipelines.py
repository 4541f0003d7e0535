"""The pipelines that this process serves, and the checks of API keys."""

from __future__ import annotations

from dataclasses import dataclass

from tidemill_chassis.auth import EVENTS_APPEND, Authenticator, Forbidden, Unauthorized
from tidemill_chassis.pipelines import PipelineDirectory
from tidemill_chassis.web.problems import denied, not_found
from tidemill_contract.runtime import PipelineConfig, WorkloadSettings
from tidemill_ingest import metrics
from tidemill_ingest.records import Judge


@dataclass(frozen=True)
class Pipeline:
    """A pipeline, with the objects compiled from its config."""

    config: PipelineConfig
    judge: Judge

    @property
    def name(self) -> str:
        """The name of the pipeline."""
        return self.config.name

    def count(self, outcomes: dict[str, int]) -> None:
        """Add to the metric of ingested events."""
        for outcome, events in outcomes.items():
            if events:
                metrics.EVENTS_INGESTED.labels(self.name, outcome).inc(events)


class Pipelines:
    """All pipelines of the namespace, or the one that the settings name."""

    def __init__(self, settings: WorkloadSettings) -> None:
        self._only = settings.pipeline
        self._directory = PipelineDirectory(settings.config_dir)
        self._authenticator = Authenticator(settings)
        self._compiled: dict[str, Pipeline] = {}

    def open(self, name: str, authorization: str | None) -> Pipeline:
        """Return a pipeline, after checking the API key.

        Raises:
            Problem: no valid key (401, 403); there is no such pipeline, or it accepts no events over HTTP (404).
        """
        config = self._directory.get(name) if not self._only or name == self._only else None
        try:
            if config is not None:
                self._authenticator.check(config, authorization, EVENTS_APPEND)
            elif self._guarded():
                self._authenticator.refuse(authorization)
        except (Unauthorized, Forbidden) as error:
            raise denied(error, EVENTS_APPEND) from None
        if config is None:
            self._compiled.pop(name, None)
            raise not_found("pipeline_not_found", f"there is no pipeline {name!r} here; check the name")
        if not config.spec.ingest.enabled:
            detail = f"{name} takes no events over HTTP; set ingest.enabled, or write to its Kafka topic"
            raise not_found("ingest_disabled", detail)
        if not config.spec.takes_http:
            written = config.spec.source.written.type
            detail = f"{name} reads {written} from its topic, and ingest writes JSON only; write to its Kafka topic"
            raise not_found("ingest_writes_json", detail)
        compiled = self._compiled.get(name)
        if compiled is None or compiled.config is not config:
            compiled = self._compiled[name] = Pipeline(config, Judge(config))
        return compiled

    def _guarded(self) -> bool:
        """Whether any pipeline requires a key; then requests for unknown pipelines are refused in the same way."""
        mine = (config for config in self._directory.all() if self._only in ("", config.name))
        return any(config.spec.auth.required is not False for config in mine)

    def names(self) -> list[str]:
        """The pipelines that accept events."""
        return [c.name for c in self._directory.all() if c.spec.takes_http and self._only in ("", c.name)]

    def faults(self) -> dict[str, str]:
        """Errors of unreadable config files, by pipeline."""
        return self._directory.faults
