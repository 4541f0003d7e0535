"""Tests of the logins of pipelines on a real Postgres: they have no access to other pipelines in any namespace."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors

from tidemill_contract import names
from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_contract.runtime import PostgresCredentials
from tidemill_operator.actuators.base import PipelineSecrets
from tidemill_operator.actuators.local.secrets import FileSecrets
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.laptop.servers import Servers
from tidemill_operator.outcome import Rank
from tidemill_operator.plan.build import build_plan, owner_of
from tidemill_operator.settings import Platform

pytestmark = pytest.mark.integration

DOCUMENT: dict[str, Any] = {
    "apiVersion": "tidemill.dev/v1alpha1",
    "kind": "AnalyticsPipeline",
    "metadata": {"name": "orders", "namespace": "tenant-a", "uid": "uid-1", "generation": 1},
    "spec": {
        "source": {"fields": [{"name": "shop", "type": "string"}]},
        "aggregations": [
            {
                "name": "by_shop",
                "groupBy": ["shop"],
                "window": {"type": "tumbling", "size": "1h"},
                "metrics": [{"name": "orders", "function": "count"}],
            }
        ],
    },
}
# The second has the name of the first. The third has its namespace, and a name with the same beginning.
PIPELINES = (("tenant-a", "orders"), ("tenant-b", "orders"), ("tenant-a", "orders-2"))


@dataclass(frozen=True)
class Tenant:
    """A pipeline's schema and its logins."""

    schema: str
    secrets: PipelineSecrets


@pytest.fixture
def tenants(servers: Servers, tmp_path: Path) -> Iterator[list[Tenant]]:
    actuator, platform, tenants = PostgresSchemas(servers.postgres), Platform(), []
    secrets, plans = FileSecrets(tmp_path), []
    for number, (namespace, name) in enumerate(PIPELINES):
        document = copy.deepcopy(DOCUMENT)
        document["metadata"] |= {"namespace": namespace, "name": name, "uid": f"uid-{number}"}
        pipeline = AnalyticsPipeline.model_validate(document)
        plan, owner = build_plan(pipeline, platform, 1), owner_of(pipeline, platform)
        schema = plan.schema
        logins = secrets.ensure(namespace, name, writer=schema.writer, reader=schema.reader)
        (outcome,) = actuator.ensure(schema, owner=owner, secrets=logins)
        assert outcome.rank == Rank.DONE, outcome
        plans.append((schema, owner))
        tenants.append(Tenant(schema.name, logins))
    yield tenants
    for schema, owner in plans:
        actuator.release(schema, owner=owner, reclaim="Delete")


DENIED = (
    "SELECT count(*) FROM {s}.by_shop_v1",
    "SELECT count(*) FROM {s}._dead_letters",
    "UPDATE {s}._offsets SET next_offset = 0",
    "INSERT INTO {s}._lost (reader, partition, epoch, from_offset, reason) VALUES ('live', 0, 0, 0, 'x')",
    "SELECT {s}.ensure_partition('by_shop_v1', 0, 1)",
    "CREATE TABLE {s}.mine (x integer)",
    "SET ROLE {s}_owner",
    "SET ROLE {s}_writer",
    "SET ROLE {s}_reader_a",
    "ALTER ROLE {s}_writer_a PASSWORD 'x'",
    "GRANT {s}_reader TO CURRENT_USER",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{s}_writer_a'",
)


def connect(servers: Servers, login: PostgresCredentials) -> psycopg.Connection[Any]:
    at = servers.postgres
    return psycopg.connect(
        host=at.host, port=at.port, dbname=at.database, user=login.user, password=login.password, autocommit=True
    )


@pytest.mark.parametrize("role", ["writer", "reader"])
def test_a_login_has_access_only_to_the_schema_of_its_pipeline(
    servers: Servers, tenants: list[Tenant], role: str
) -> None:
    for own in tenants:
        login: PostgresCredentials = getattr(own.secrets, role)
        with connect(servers, login) as session:
            assert session.execute(f"SELECT count(*) FROM {own.schema}.by_shop_v1").fetchone() == (0,)
            for other in tenants:
                if other is own:
                    continue
                with connect(servers, other.secrets.writer):  # the last statement tries to end this session
                    for statement in DENIED:
                        text = statement.format(s=other.schema)
                        with pytest.raises((errors.InsufficientPrivilege, errors.ReadOnlySqlTransaction)):
                            session.execute(text)


def test_no_two_pipelines_share_a_role(tenants: list[Tenant]) -> None:
    roles = [
        role
        for tenant in tenants
        for function in ("writer", "reader")
        for role in names.login_roles(names.role(tenant.schema, function))
    ]
    assert len(set(roles)) == len(roles) == 4 * len(PIPELINES)
