"""Fixtures on real servers: schemas and topics of pipelines, and workloads as processes."""

from __future__ import annotations

import copy
import datetime as dt
import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import psycopg
import pytest

from bench import MakeBench, benches
from pipelines.local_pipeline import LocalPipeline
from pipelines.pipeline_schema import connect_admin, create_schema
from tidemill_contract.runtime import PipelineConfig, WorkloadSettings
from tidemill_operator.actuators.base import Actuators
from tidemill_operator.actuators.kafka.topics import KafkaTopics
from tidemill_operator.actuators.local.process_specs import ProcessSpecs
from tidemill_operator.actuators.local.runtime import LocalRuntime
from tidemill_operator.actuators.local.secrets import FileSecrets
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.reconcile import release
from tidemill_operator.settings import Platform
from tidemill_processor.database import Database

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "reference"

PipelineSchema = tuple[psycopg.Connection[Any], Database]


@pytest.fixture
def documented() -> Callable[[str, dict[str, Any]], None]:
    """Return a function that validates a record of an output topic: `documented("results", record)`.

    The schemas are those of the documentation.
    """
    times = jsonschema.FormatChecker(formats=())
    times.checks("date-time", raises=ValueError)(dt.datetime.fromisoformat)

    @functools.cache
    def validator(kind: str) -> jsonschema.Draft202012Validator:
        schema = json.loads((SCHEMAS / f"{kind}.schema.json").read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        return jsonschema.Draft202012Validator(schema, format_checker=times)

    return lambda kind, record: validator(kind).validate(record)


@pytest.fixture
def admin(servers: Any) -> Iterator[psycopg.Connection[Any]]:
    """Yield the administrator's connection to the session's Postgres."""
    with connect_admin(servers) as connection:
        yield connection


@pytest.fixture
def make_schema(admin: psycopg.Connection[Any]) -> Callable[[PipelineConfig], PipelineSchema]:
    """Return a function that creates the tables of a pipeline, with the positions of all partitions at zero."""

    def make(config: PipelineConfig) -> PipelineSchema:
        create_schema(admin, config, started=True)
        return admin, Database(WorkloadSettings(), config, 10)

    return make


@pytest.fixture
def make_bench(servers: Any, tmp_path: Path) -> Iterator[MakeBench]:
    """Return a function that creates a pipeline with topics and schema.

    The test starts its workloads. They are ended after the test.
    """
    with benches(servers, tmp_path) as make:
        yield make


@pytest.fixture(scope="module")
def make_shared_bench(servers: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeBench]:
    """Return the function of `make_bench`, for pipelines that all tests of a module share."""
    with benches(servers, tmp_path_factory.mktemp("bench")) as make:
        yield make


@pytest.fixture(scope="module")
def make_bench_at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeBench]:
    """Return the function of `make_bench`, for servers that the module started: `make_bench_at(config, at=…)`.

    Servers without Kafka get no topics.
    """
    with benches(None, tmp_path_factory.mktemp("bench")) as make:
        yield make


@pytest.fixture
def make_local(servers: Any, tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], LocalPipeline]]:
    """Return a function that prepares a pipeline for the local runtime.

    Its topics, schema and processes are deleted after the test.
    """
    pipelines: list[LocalPipeline] = []

    def make(document: dict[str, Any]) -> LocalPipeline:
        at, folder = servers.postgres, tmp_path / str(len(pipelines))
        addresses = {
            "TIDEMILL_KAFKA_BROKERS": servers.kafka,
            "TIDEMILL_POSTGRES_HOST": at.host,
            "TIDEMILL_POSTGRES_PORT": str(at.port),
            "TIDEMILL_POSTGRES_DATABASE": at.database,
            "TIDEMILL_REDIS_URL": servers.redis,
        }
        runtime = LocalRuntime(
            ProcessSpecs(folder, environ=os.environ, addresses=addresses, ports={"ingest": 0, "api": 0})
        )
        actuators = Actuators(
            kafka=KafkaTopics(servers.kafka),
            postgres=PostgresSchemas(at),
            secrets=FileSecrets(runtime.secrets_root),
            runtime=runtime,
        )
        runtime.start()
        pipelines.append(LocalPipeline(servers, folder, copy.deepcopy(document), actuators, runtime))
        return pipelines[-1]

    yield make
    for pipeline in pipelines:
        pipeline.document["spec"]["reclaimPolicy"] = "Delete"
        try:
            release(pipeline.document, platform=Platform(), actuators=pipeline.actuators)
        finally:
            pipeline.runtime.close()
