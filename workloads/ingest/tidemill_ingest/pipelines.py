"""Finds the pipelines that this process serves, and checks API keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tidemill_chassis.auth import EVENTS_APPEND, Authenticator, Forbidden, Unauthorized
from tidemill_chassis.pipelines import PipelineDirectory
from tidemill_chassis.web.problems import denied, not_found
from tidemill_contract.resource.inputs.webhooks import WebhookSpec
from tidemill_contract.runtime import PipelineConfig, WorkloadSettings
from tidemill_ingest import metrics
from tidemill_ingest.records import RecordBuilder


@dataclass(frozen=True)
class Pipeline:
    """A pipeline, with its configuration and the `RecordBuilder` that validates its events."""

    config: PipelineConfig
    record_builder: RecordBuilder

    @property
    def name(self) -> str:
        """The name of the pipeline."""
        return self.config.name

    def count(self, outcomes: dict[str, int]) -> None:
        """Add events to the metric of ingested events, with their outcome as label."""
        for outcome, events in outcomes.items():
            if events:
                metrics.EVENTS_INGESTED.labels(self.name, outcome).inc(events)


class Pipelines:
    """All pipelines of the namespace, or the pipeline that the settings name."""

    def __init__(self, settings: WorkloadSettings) -> None:
        self._only_name = settings.pipeline
        self._directory = PipelineDirectory(settings.config_dir)
        self._authenticator = Authenticator(settings)
        self._pipelines: dict[str, Pipeline] = {}

    def authorize(self, name: str, authorization: str | None) -> Pipeline:
        """Check the API key, and return the pipeline.

        Raises:
            Problem: the API key is missing or wrong (401) or lacks the scope (403), or the pipeline does not accept
                events (404).
        """
        config = self._directory.get(name) if not self._only_name or name == self._only_name else None
        try:
            if config is not None:
                self._authenticator.check(config, authorization, EVENTS_APPEND)
            elif self._any_requires_key():
                self._authenticator.refuse(authorization)
        except (Unauthorized, Forbidden) as error:
            raise denied(error, EVENTS_APPEND) from None
        if config is None:
            self._pipelines.pop(name, None)
            raise not_found("pipeline_not_found", f"there is no pipeline {name!r} here; check the name")
        if not config.spec.ingest.enabled:
            detail = (
                f"{name} takes no events over HTTP; set ingest.enabled, or write to the Kafka topic of the pipeline"
            )
            raise not_found("ingest_disabled", detail)
        if config.spec.source.is_multi_topic:
            detail = (
                f"ingest cannot write to a pipeline with several topics; write to {' or '.join(config.source_topics)}"
            )
            raise not_found("several_topics", f"{name}: {detail}")
        if (kafka := config.spec.source.kafka) is not None:
            topic = f"the topic {config.events_topic} of {kafka.bootstrap_servers}"
            raise not_found(
                "topic_elsewhere", f"{name}: ingest cannot write to another Kafka cluster; write to {topic}"
            )
        if config.only_read:
            detail = f"ingest cannot write, as the topic has another owner; write to the topic {config.events_topic}"
            raise not_found("topic_of_others", f"{name}: {detail}")
        if not config.takes_http:
            written = config.spec.source.record_format.type
            detail = f"{name} reads {written}, but ingest writes only JSON; write to the Kafka topic of the pipeline"
            raise not_found("ingest_writes_json", detail)
        return self._pipeline(config)

    def webhook(self, name: str, webhook: str) -> tuple[Pipeline, WebhookSpec]:
        """Return a pipeline, and the webhook with the name `webhook`.

        Raises:
            Problem: there is no pipeline or webhook of this name (404).
        """
        config = self._directory.get(name) if not self._only_name or name == self._only_name else None
        if config is not None and config.spec.takes_http:
            for spec in config.spec.source.webhooks or ():
                if spec.name == webhook:
                    return self._pipeline(config), spec
        raise not_found("webhook_not_found", f"there is no webhook {name}/{webhook} here; check the address")

    def webhooks(self) -> list[tuple[str, WebhookSpec]]:
        """Return all webhooks, with the names of their pipelines."""
        return [(config.name, webhook) for config in self._served() for webhook in config.spec.source.webhooks or ()]

    def _pipeline(self, config: PipelineConfig) -> Pipeline:
        pipeline = self._pipelines.get(config.name)
        if pipeline is None or pipeline.config is not config:
            pipeline = self._pipelines[config.name] = Pipeline(config, RecordBuilder(config))
        return pipeline

    def _any_requires_key(self) -> bool:
        """Return whether any pipeline requires an API key."""
        return any(config.spec.auth.required is not False for config in self._served())

    def _served(self) -> Iterator[PipelineConfig]:
        return (config for config in self._directory.all() if self._only_name in ("", config.name))

    def names(self) -> list[str]:
        """Return the names of the pipelines that accept events."""
        return [config.name for config in self._served() if config.takes_http]

    def faults(self) -> dict[str, str]:
        """Return the errors of unreadable configuration files, by pipeline."""
        return self._directory.faults
