"""The configs that the operator writes and the workloads read: files of pipelines and secrets, and the environment.

Config files: `<config dir>/<pipeline>.json`, one PipelineConfig each. Secrets: `<secrets dir>/<pipeline>/<file>`, or
flat `<pipeline>.<file>`: writer.json and reader.json (PostgresCredentials), api-keys.json (ApiKeys). Both are replaced
atomically, so a reader polls them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from tidemill_contract import names, trust
from tidemill_contract.files import read_bytes
from tidemill_contract.resource.spec import PipelineSpec


class _Config(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class AggregationRef(_Config):
    """Which version of an aggregation's table is live."""

    name: str
    version: int = 1


class PipelineConfig(_Config):
    """One pipeline as its workloads see it. `spec` has every default resolved (topic name, partitions, auth, …).

    `generation` is that of the last spec that told processors something new; a writer older than the schema's
    `_generation` row stops.
    """

    namespace: str
    name: str
    generation: int
    spec: PipelineSpec
    aggregations: tuple[AggregationRef, ...]

    @property
    def events_topic(self) -> str:
        """The source topic."""
        return self.spec.source.topic.name or names.topic(self.namespace, self.name, "events")

    @property
    def schema_name(self) -> str:
        """The Postgres schema."""
        return names.schema(self.namespace, self.name)

    def topic(self, kind: Literal["results", "anomalies", "dead-letters"]) -> str:
        """An output topic."""
        return names.topic(self.namespace, self.name, kind)

    def version(self, aggregation: str) -> int:
        """The live table version of an aggregation."""
        return next(ref.version for ref in self.aggregations if ref.name == aggregation)

    def to_json(self) -> str:
        """The config file's text; stable, so that an unchanged config makes no write."""
        return self.model_dump_json(by_alias=True, indent=1, exclude_none=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> PipelineConfig:
        """Parse a config file.

        Raises:
            pydantic.ValidationError: the text is not such a file.
        """
        return cls.model_validate_json(text)


class PostgresCredentials(_Config):
    """A login role."""

    user: str
    password: str


class ApiKey(_Config):
    """One API key: its public id, the SHA-256 (hex) of its secret and what it may do.

    The key as its holder sends it is `tm_<id>_<secret>`. Scopes: `events:append`, `query:read`.
    """

    id: str
    sha256: str
    scopes: tuple[str, ...]


class ApiKeys(_Config):
    """The keys that a pipeline accepts."""

    keys: tuple[ApiKey, ...] = ()


class WorkloadSettings(_Config):
    """What the environment tells every workload."""

    namespace: str = "default"
    host: str = "127.0.0.1"
    port: int = 8080
    status_port: int = 0
    """Where ingest and API tell figures, full health and probes, apart from their clients' port; 0: nowhere."""
    allowed_hosts: str = ""
    """Names that they may be called by, between commas; addresses always pass. Empty: all."""
    kafka_brokers: str = ""
    kafka_config: Path | None = None
    postgres_host: str = "127.0.0.1"
    postgres_port: int = 5432
    postgres_database: str = "tidemill"
    postgres_sslmode: str = "prefer"
    postgres_ca: str = ""
    """PEM file of the authorities that sign Postgres' certificate; empty: libpq's own place."""
    redis_url: str = ""
    redis_ca: str = ""
    """The same for Redis; empty: the system's authorities."""
    config_dir: Path = Path("/etc/tidemill/pipelines")
    pipeline: str = ""
    secrets_dir: Path = Path("/etc/tidemill/secrets")
    resilience_file: Path | None = None
    log_level: str = "INFO"
    instance: str = ""
    """A name that a restarted process keeps: it then takes its partitions back at once, without a session timeout."""
    session_timeout_ms: int = 30_000
    reader: str = "live"
    """Whose positions a processor moves: those of live traffic, or those of a replay."""
    start_from: str = ""
    """Where a replay begins: earliest, or a time in RFC 3339."""
    rate: int = 0
    """Events a second at most of a replay; 0: as many as there are."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> WorkloadSettings:
        """Read `TIDEMILL_<FIELD>` variables, e.g. TIDEMILL_KAFKA_BROKERS.

        Raises:
            pydantic.ValidationError: a value is not of its field's type.
        """
        found = {
            key: environ[f"TIDEMILL_{key.upper()}"]
            for key in cls.model_fields
            if environ.get(f"TIDEMILL_{key.upper()}")
        }
        return cls.model_validate(found)

    @model_validator(mode="after")
    def _trusts(self) -> WorkloadSettings:
        trust.authority("TIDEMILL_POSTGRES_CA", self.postgres_ca)
        trust.authority("TIDEMILL_REDIS_CA", self.redis_ca)
        trust.redis_options(self.redis_url, self.redis_ca)
        return self

    @property
    def postgres_tls(self) -> dict[str, Any]:
        """Settings of libpq: whether connections are encrypted, and whose certificates are trusted."""
        trusted = {"sslrootcert": self.postgres_ca} if self.postgres_ca else {}
        return {"sslmode": self.postgres_sslmode, **trusted}

    @property
    def redis_tls(self) -> dict[str, Any]:
        """Settings of a Redis client besides the URL."""
        return trust.redis_options(self.redis_url, self.redis_ca)

    def load_pipeline(self, name: str) -> PipelineConfig:
        """The config of one pipeline."""
        return PipelineConfig.from_json(read_bytes(self.config_dir / f"{name}.json"))

    def secret_file(self, pipeline: str, name: str) -> Path:
        """Where a pipeline's secret is: `<pipeline>.<name>` if there is such a file, else `<pipeline>/<name>`.

        The flat form is for a Kubernetes Secret of many pipelines, whose keys take no slash; a pipeline's name holds no
        dot.
        """
        flat = self.secrets_dir / f"{pipeline}.{name}"
        return flat if flat.exists() else self.secrets_dir / pipeline / name

    def credentials(self, pipeline: str, role: Literal["writer", "reader"]) -> PostgresCredentials:
        """A pipeline's Postgres login."""
        return PostgresCredentials.model_validate_json(read_bytes(self.secret_file(pipeline, f"{role}.json")))

    def api_keys(self, pipeline: str) -> ApiKeys:
        """The API keys of a pipeline; none if there is no such file."""
        path = self.secret_file(pipeline, "api-keys.json")
        return ApiKeys.model_validate_json(read_bytes(path)) if path.exists() else ApiKeys()
