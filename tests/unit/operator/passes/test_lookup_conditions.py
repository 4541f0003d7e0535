"""Tests of the condition LookupsReady: from the rows of processors, and from observation between passes."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

from tidemill_contract.tables.failures import STALE_LOOKUP, UNREAD_LOOKUP
from tidemill_operator.errors import TidemillError
from tidemill_operator.plan.live import TaskFailure
from tidemill_operator.plan.postgres.lookups import unread_lookups_error
from tidemill_operator.reconcile import reconcile
from tidemill_operator.settings import Platform
from tidemill_operator.testing import MemoryWorld

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
SCHEMA = "shop__orders"
MISSING = "file plans.csv of the ConfigMap plans: cannot be read: No such file or directory; create it"
DOCUMENT: dict[str, Any] = {
    "apiVersion": "tidemill.dev/v1alpha1",
    "kind": "AnalyticsPipeline",
    "metadata": {"name": "orders", "namespace": "shop", "uid": "u", "generation": 1},
    "spec": {
        "source": {"fields": [{"name": "plan", "type": "string"}, {"name": "customer", "type": "string"}]},
        "lookups": [
            {
                "name": "plans",
                "on": "plan",
                "from": {"configMap": "plans", "file": "plans.csv", "key": "plan"},
                "fields": [{"name": "price", "type": "number"}],
            },
            {
                "name": "customers",
                "on": "customer",
                "from": {"topic": "shop.customers"},
                "fields": [{"name": "segment", "type": "string"}],
            },
        ],
        "aggregations": [
            {
                "name": "by_plan",
                "groupBy": ["plan"],
                "window": {"type": "tumbling", "size": "1h"},
                "metrics": [{"name": "n", "function": "count"}],
            }
        ],
    },
}


class World:
    """A pipeline with two lookups in a world in memory."""

    def __init__(self) -> None:
        self.memory, self.status = MemoryWorld(), dict[str, Any]()
        self.progress_error: TidemillError | None = None
        self.run()

    def store(self, *held_up: TaskFailure) -> None:
        schema = self.memory.postgres.schemas[SCHEMA]
        self.memory.postgres.schemas[SCHEMA] = replace(schema, held_up=held_up)

    def run(self, document: dict[str, Any] = DOCUMENT) -> dict[str, tuple[str, str, str]]:
        self.status = reconcile(
            document,
            platform=Platform(),
            actuators=self.memory.actuators,
            previous=self.status or None,
            now=NOON,
            progress_error=lambda: self.progress_error,
        )
        return {c["type"]: (c["status"], c["reason"], c["message"]) for c in self.status["conditions"]}


def test_a_lookup_that_was_not_read_is_named_and_the_pipeline_is_not_ready() -> None:
    world = World()
    assert world.run()["LookupsReady"] == ("True", "Applied", "")
    world.store(TaskFailure("plans", UNREAD_LOOKUP, MISSING))
    conditions = world.run()
    message = f"lookup plans was not read yet: {MISSING}; events wait meanwhile, and none is lost"
    assert conditions["LookupsReady"] == ("False", "LookupUnread", message)
    assert conditions["Ready"] == ("False", "LookupUnread", f"LookupsReady: {message}")
    assert "WindowsFailing" not in conditions
    world.store()
    conditions = world.run()
    assert (conditions["LookupsReady"][0], conditions["Ready"][0]) == ("True", "True")


def test_a_stale_lookup_is_named_and_the_pipeline_serves() -> None:
    world = World()
    world.store(TaskFailure("customers", STALE_LOOKUP, "Kafka, topic shop.customers: no answer; stale"))
    conditions = world.run()
    message = "lookup customers: Kafka, topic shop.customers: no answer; stale"
    assert conditions["LookupsReady"] == ("True", "LookupStale", message)
    assert conditions["Ready"][0] == "True"


def test_a_row_about_a_lookup_that_the_spec_no_longer_has_does_not_matter() -> None:
    world = World()
    world.store(TaskFailure("shops", UNREAD_LOOKUP, MISSING))
    assert world.run()["LookupsReady"][0] == "True"
    without = {**DOCUMENT, "spec": {key: value for key, value in DOCUMENT["spec"].items() if key != "lookups"}}
    without["metadata"] = {**DOCUMENT["metadata"], "generation": 2}
    assert "LookupsReady" not in world.run(without)


def test_an_observation_between_passes_changes_the_condition_at_once() -> None:
    world = World()
    world.progress_error = unread_lookups_error([("plans", MISSING), ("customers", "no answer")])
    conditions = world.run()
    assert conditions["LookupsReady"][:2] == ("False", "LookupUnread")
    assert "lookup plans was not read yet" in conditions["Ready"][2]
    assert "lookup customers was not read yet: no answer" in conditions["Ready"][2]
    assert conditions["ProcessorsReady"][0] == "True"


def test_the_condition_is_kept_while_postgres_does_not_answer() -> None:
    world = World()
    world.store(TaskFailure("plans", UNREAD_LOOKUP, MISSING))
    world.run()
    world.memory.postgres.make_unreachable("Postgres")
    assert world.run()["LookupsReady"][0] == "Unknown"
