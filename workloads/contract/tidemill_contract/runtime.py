"""The files and environment variables that the operator writes and the workloads read.

The config of a pipeline is in `<config dir>/<pipeline>.json`. Secrets are in `<secrets dir>/<pipeline>/<file>` or
`<secrets dir>/<pipeline>.<file>`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Json, model_validator

from tidemill_contract import names, tls
from tidemill_contract.files import read_bytes
from tidemill_contract.resource.spec import PipelineSpec


class _Config(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class AggregationRef(_Config):
    """The name and the current version of an aggregation."""

    name: str
    version: int = 1


class PipelineConfig(_Config):
    """The configuration that the workloads of a pipeline read.

    Attributes:
        generation: the resource's generation at the latest change that affects processors.
        spec: the spec with all defaults resolved (topic name, partitions, auth, …).
        only_read: whether ingest must not write to the source topic, because the topic has another owner.
    """

    namespace: str
    name: str
    generation: int
    spec: PipelineSpec
    aggregations: tuple[AggregationRef, ...]
    only_read: bool | None = None

    @property
    def takes_http(self) -> bool:
        """Whether ingest accepts events for the pipeline."""
        return self.spec.takes_http and not self.only_read

    @property
    def events_topic(self) -> str:
        """The name of the source topic, for a pipeline with one topic."""
        return self.spec.source.topic.name or names.topic(self.namespace, self.name, "events")

    @property
    def source_topics(self) -> tuple[str, ...]:
        """The names of the source topics, including the topics that match a pattern."""
        return tuple(self.spec.source.topics or ()) if self.spec.source.is_multi_topic else (self.events_topic,)

    @property
    def read_topic(self) -> str:
        """The topic for processors: the source topic or, with a Python stage, the topic from the stage."""
        return self.events_topic if self.spec.transform.python is None else self.topic("stage")

    @property
    def schema_name(self) -> str:
        """The name of the Postgres schema."""
        return names.schema(self.namespace, self.name)

    def topic(self, kind: Literal["results", "anomalies", "dead-letters", "stage"]) -> str:
        """Return the name of an output topic, or of the topic to which the Python stage writes."""
        return names.topic(self.namespace, self.name, kind)

    def version(self, aggregation: str) -> int:
        """Return the current version of an aggregation."""
        return next(ref.version for ref in self.aggregations if ref.name == aggregation)

    def to_json(self) -> str:
        """Return the text of the config file, which is equal for equal configs."""
        return self.model_dump_json(by_alias=True, indent=1, exclude_none=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> PipelineConfig:
        """Parse a config file, or raise pydantic.ValidationError."""
        return cls.model_validate_json(text)


class PostgresCredentials(_Config):
    """The user and the password of a login role."""

    user: str
    password: str


class ApiKey(_Config):
    """An API key without its secret. Clients send the key as `tm_<id>_<secret>`.

    Attributes:
        id: the public id.
        sha256: the SHA-256 of the secret, in hex.
        scopes: the permissions, `events:append` or `query:read`.
    """

    id: str
    sha256: str
    scopes: tuple[str, ...]


class ApiKeys(_Config):
    """The API keys that a pipeline accepts."""

    keys: tuple[ApiKey, ...] = ()


class WorkloadSettings(_Config):
    """The settings that every workload reads from the environment."""

    namespace: str = "default"
    host: str = "127.0.0.1"
    port: int = 8080
    status_port: int = 0
    """The separate port on which ingest and API serve metrics, probes and full health reports, or 0 for no separate
    port."""
    allowed_hosts: str = ""
    """The host names that clients may use, separated by commas. An empty text allows all names, and IP addresses are
    always allowed."""
    kafka_brokers: str = ""
    kafka_config: Path | None = None
    postgres_host: str = "127.0.0.1"
    postgres_port: int = 5432
    postgres_database: str = "tidemill"
    postgres_sslmode: str = "prefer"
    postgres_ca: str = ""
    """The PEM file of the authorities that sign Postgres' certificate, or an empty text for libpq's default."""
    redis_url: str = ""
    redis_ca: str = ""
    """The PEM file of the authorities for Redis' certificate. An empty text means the system's authorities."""
    config_dir: Path = Path("/etc/tidemill/pipelines")
    pipeline: str = ""
    secrets_dir: Path = Path("/etc/tidemill/secrets")
    registry_dir: Path | None = None
    """The folder with the schema registry's Secret."""
    mqtt_dir: Path | None = None
    """The folder with the MQTT broker's Secret."""
    source_kafka_dir: Path | None = None
    """The folder with the Secret for the pipeline's own Kafka cluster (`source.kafka`)."""
    stage_dir: Path | None = None
    """The folder with the file of the Python stage."""
    lookup_dirs: Json[dict[str, Path]] = {}
    """The folder of each lookup that reads a ConfigMap or needs a Secret, by the lookup's name."""
    resilience_file: Path | None = None
    log_level: str = "INFO"
    instance: str = ""
    """The name of this process. It is the same after a restart, so the process gets its partitions back at once."""
    session_timeout_ms: int = 30_000
    reader: str = "live"
    """The name under which a processor stores positions: `live`, or the name of a replay."""
    start_from: str = ""
    """The start of a replay: `earliest`, or a time in RFC 3339."""
    rate: int = 0
    """The maximum events per second of a replay, or 0 for no limit."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> WorkloadSettings:
        """Read the settings from variables such as TIDEMILL_KAFKA_BROKERS, or raise pydantic.ValidationError."""
        settings = {
            key: environ[f"TIDEMILL_{key.upper()}"]
            for key in cls.model_fields
            if environ.get(f"TIDEMILL_{key.upper()}")
        }
        return cls.model_validate(settings)

    @model_validator(mode="after")
    def _check_tls(self) -> WorkloadSettings:
        tls.ca_path("TIDEMILL_POSTGRES_CA", self.postgres_ca)
        tls.ca_path("TIDEMILL_REDIS_CA", self.redis_ca)
        tls.redis_options(self.redis_url, self.redis_ca)
        return self

    @property
    def postgres_tls(self) -> dict[str, Any]:
        """The TLS settings of libpq."""
        authority = {"sslrootcert": self.postgres_ca} if self.postgres_ca else {}
        return {"sslmode": self.postgres_sslmode, **authority}

    @property
    def redis_tls(self) -> dict[str, Any]:
        """The TLS settings of a Redis client that are not in the URL."""
        return tls.redis_options(self.redis_url, self.redis_ca)

    def load_pipeline(self, name: str) -> PipelineConfig:
        """Read the config of one pipeline, or raise OSError or pydantic.ValidationError."""
        return PipelineConfig.from_json(read_bytes(self.config_dir / f"{name}.json"))

    def secret_file(self, pipeline: str, name: str) -> Path:
        """Return the path of a pipeline's secret, either `<pipeline>.<name>` or `<pipeline>/<name>`."""
        flat = self.secrets_dir / f"{pipeline}.{name}"
        return flat if flat.exists() else self.secrets_dir / pipeline / name

    def credentials(self, pipeline: str, role: Literal["writer", "reader"]) -> PostgresCredentials:
        """Read a pipeline's Postgres login, or raise OSError or pydantic.ValidationError."""
        return PostgresCredentials.model_validate_json(read_bytes(self.secret_file(pipeline, f"{role}.json")))

    def api_keys(self, pipeline: str) -> ApiKeys:
        """Read a pipeline's API keys (a missing file means no keys), or raise OSError or pydantic.ValidationError."""
        path = self.secret_file(pipeline, "api-keys.json")
        return ApiKeys.model_validate_json(read_bytes(path)) if path.exists() else ApiKeys()
