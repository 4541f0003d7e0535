"""The schema of one pipeline on a real Postgres, which the operator's actuator creates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from pipelines.orders_by_shop import orders_by_shop
from tidemill_contract import names
from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_operator.actuators.base import PipelineSecrets
from tidemill_operator.actuators.local.secrets import FileSecrets
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.laptop.servers import Servers
from tidemill_operator.outcome import Outcome, Rank
from tidemill_operator.plan.build import build_plan, owner_of
from tidemill_operator.plan.live import Owner
from tidemill_operator.plan.model import Plan
from tidemill_operator.settings import Platform

DOCUMENT = orders_by_shop("pgtest", retention="10d")


class OwnedSchema:
    """The schema of one pipeline. Tests read it and damage it as the administrator."""

    def __init__(self, servers: Servers, folder: Path, document: dict[str, Any]) -> None:
        self.servers, self.document = servers, document
        self.actuator = PostgresSchemas(servers.postgres)
        self.secrets = FileSecrets(folder / "secrets")
        self.admin = psycopg.connect(servers.postgres.url, autocommit=True, options="-c TimeZone=UTC")

    @property
    def pipeline(self) -> AnalyticsPipeline:
        return AnalyticsPipeline.model_validate(self.document)

    @property
    def plan(self) -> Plan:
        return build_plan(self.pipeline, Platform(), self.document["metadata"]["generation"])

    @property
    def owner(self) -> Owner:
        return owner_of(self.pipeline, Platform())

    def logins(self) -> PipelineSecrets:
        """Return the logins of writer and reader, and create them if they do not exist."""
        schema = self.plan.schema
        return self.secrets.ensure(self.plan.namespace, self.plan.name, writer=schema.writer, reader=schema.reader)

    def ensure(self, *, adopt: bool = False) -> Outcome:
        """Create or repair the schema."""
        (outcome,) = self.actuator.ensure(self.plan.schema, owner=self.owner, secrets=self.logins(), adopt=adopt)
        return outcome

    def run(self, statement: str) -> None:
        """Run a statement, in which `{s}` stands for the schema and `{writer}`, `{reader_a}`, … for roles."""
        schema = sql.Identifier(self.plan.schema.name)
        roles = {name: sql.Identifier(getattr(self.plan.schema, name)) for name in ("owner", "writer", "reader")}
        for name in ("writer", "reader"):
            for letter, login in zip("ab", names.login_roles(getattr(self.plan.schema, name)), strict=True):
                roles[f"{name}_{letter}"] = sql.Identifier(login)
        self.admin.execute(sql.SQL(statement).format(s=schema, **roles))

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query, in which `{s}` stands for the schema."""
        return self.admin.execute(sql.SQL(statement).format(s=sql.Identifier(self.plan.schema.name))).fetchall()

    def login(self, role: str) -> psycopg.Connection[Any]:
        """Connect as `writer` or `reader`, with the password of the role."""
        login = getattr(self.logins(), role)
        at = self.servers.postgres
        return psycopg.connect(
            host=at.host, port=at.port, dbname=at.database, user=login.user, password=login.password, autocommit=True
        )

    def clean(self) -> None:
        """Delete the schema, and close the connection."""
        plan = self.plan
        live = self.actuator.observe(plan.schema.name)
        owner = live.owner if live and live.owner else self.owner
        (outcome,) = self.actuator.release(plan.schema, owner=owner, reclaim="Delete")
        assert outcome.rank == Rank.DONE, outcome
        self.admin.close()
