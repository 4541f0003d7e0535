"""Tests of who owns topics and schema, and of what is retained, on a real Kafka and Postgres."""

from __future__ import annotations

import copy
import json
import os

import pytest

from kafka_admin import KafkaAdmin
from pipelines.applied_pipeline import NOON, SCHEMA, TOPICS, WELL, AppliedPipeline
from tidemill_operator.cli.main import main
from tidemill_operator.processes.child import start_time
from tidemill_operator.reconcile import reconcile, release
from tidemill_operator.settings import Platform

pytestmark = pytest.mark.integration


def test_another_resource_of_the_same_name(bench: AppliedPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """A conflict until it is adopted; then the topics and windows of before go on."""
    bench.apply()
    first = copy.deepcopy(bench.document)
    bench.document["metadata"] |= {"uid": "uid-2", "generation": 1}
    bench.status = None
    assert bench.apply() == {"Stalled": "ResourceConflict"}
    assert "schema rectest__orders exists and belongs to rectest/orders (uid uid-1" in bench.message("Stalled")
    outcomes = release(bench.document, platform=Platform(), actuators=bench.actuators)
    assert [outcome.message for outcome in outcomes] == ["the schema has another owner"]
    assert bench.there() == (set(TOPICS), True)
    bench.document["metadata"]["annotations"] = {"tidemill.dev/adopt": "true"}
    assert bench.apply() == WELL
    assert release(first, platform=Platform(), actuators=bench.actuators)[0].message == "the schema has another owner"


def test_anothers_results_are_not_taken_and_not_deleted(bench: AppliedPipeline) -> None:
    """Neither as a topic that is managed, nor by adopting; a topic that was there before its pipeline stays as well."""
    KafkaAdmin(bench.servers.kafka).create("rectest.before", 1)
    bench.apply()
    configs = bench.kafka.configs(TOPICS)
    evil = copy.deepcopy(bench.document)
    evil["metadata"] |= {"name": "evil", "uid": "uid-2"}
    told = []
    for name in ("rectest.orders.results", "rectest.orders.events", "rectest.before"):
        evil["spec"]["source"]["topic"] = {"name": name, "retention": "1m"}
        for adopt in ("false", "true"):
            evil["metadata"]["annotations"] = {"tidemill.dev/adopt": adopt}
            status = reconcile(evil, platform=Platform(), actuators=bench.actuators, previous=None, now=NOON)
            told.append(next(c["reason"] for c in status["conditions"] if c["type"] == "Ready"))
        release(evil, platform=Platform(), actuators=bench.actuators)
    assert told == ["ResourceConflict"] * 4 + ["Applied"] * 2
    assert bench.kafka.configs(TOPICS) == configs
    assert set(bench.kafka.observe([*TOPICS, "rectest.before", "rectest.evil.results"])) == {*TOPICS, "rectest.before"}


def test_retained_topics_and_schema_outlive_their_resource(bench: AppliedPipeline) -> None:
    """And are taken up again by the same resource."""
    bench.edit(reclaimPolicy="Retain")
    bench.apply()
    release(bench.document, platform=Platform(), actuators=bench.actuators)
    assert bench.there() == (set(TOPICS), True)
    assert bench.apply() == WELL


def test_what_is_retained_is_listed_and_removed(bench: AppliedPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """Of pipelines that are not there; topics, schema and roles go on request."""
    bench.edit(reclaimPolicy="Retain")
    bench.apply()
    release(bench.document, platform=Platform(), actuators=bench.actuators)
    arguments = ["status", "--retained", "--data-dir", str(bench.folder)]
    assert main(arguments) == 1
    assert "the existing pipelines are unknown" in capsys.readouterr().err
    running = {"pid": os.getpid(), "started": start_time(os.getpid()), "servers": {}}
    addresses = {"kafka": bench.servers.kafka, "postgres": bench.servers.postgres.public_url}
    (bench.folder / "status.json").write_text(json.dumps({**running, "addresses": addresses}))
    assert main([*arguments, "--output", "json"]) == 0
    found = {one["schema"]: one for one in json.loads(capsys.readouterr().out)}
    assert (found[SCHEMA]["topics"], found[SCHEMA]["owner"]["uid"]) == (sorted(TOPICS), "uid-1")
    assert found[SCHEMA]["roles"] == [f"{SCHEMA}_owner", f"{SCHEMA}_writer", f"{SCHEMA}_reader"]
    assert main([*arguments, "--remove", "rectest/orders"]) == 0
    assert bench.there() == (set(), False)
    assert main([*arguments, "--remove", "rectest/orders"]) == 1
    assert "there is no retained data" in capsys.readouterr().err
