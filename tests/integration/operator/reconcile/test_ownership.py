"""Tests of the owners of topics and schemas, and of retained data, on a real Kafka and Postgres."""

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


def test_a_new_resource_of_the_same_name_stalls_until_it_adopts_the_data(
    bench: AppliedPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    """After adoption it uses the existing topics and windows, and the former resource cannot delete them."""
    bench.apply()
    first = copy.deepcopy(bench.document)
    bench.document["metadata"] |= {"uid": "uid-2", "generation": 1}
    bench.status = None
    assert bench.apply() == {"Stalled": "ResourceConflict"}
    assert "schema rectest__orders exists and belongs to rectest/orders (uid uid-1" in bench.message("Stalled")
    outcomes = release(bench.document, platform=Platform(), actuators=bench.actuators)
    assert [outcome.message for outcome in outcomes] == ["the schema has another owner"]
    assert bench.existing() == (set(TOPICS), True)
    bench.document["metadata"]["annotations"] = {"tidemill.dev/adopt": "true"}
    assert bench.apply() == WELL
    assert release(first, platform=Platform(), actuators=bench.actuators)[0].message == "the schema has another owner"


def test_a_pipeline_cannot_own_or_delete_topics_of_another_pipeline(bench: AppliedPipeline) -> None:
    """The adopt annotation does not change this. A topic older than its pipeline is never deleted either."""
    KafkaAdmin(bench.servers.kafka).create("rectest.before", 1)
    bench.apply()
    configs = bench.kafka.configs(TOPICS)
    evil = copy.deepcopy(bench.document)
    evil["metadata"] |= {"name": "evil", "uid": "uid-2"}
    reasons = []
    for name in ("rectest.orders.results", "rectest.orders.events", "rectest.before"):
        evil["spec"]["source"]["topic"] = {"name": name, "retention": "1m"}
        for adopt in ("false", "true"):
            evil["metadata"]["annotations"] = {"tidemill.dev/adopt": adopt}
            status = reconcile(evil, platform=Platform(), actuators=bench.actuators, previous=None, now=NOON)
            reasons.append(next(c["reason"] for c in status["conditions"] if c["type"] == "Ready"))
        release(evil, platform=Platform(), actuators=bench.actuators)
    assert reasons == ["ResourceConflict"] * 4 + ["Applied"] * 2
    assert bench.kafka.configs(TOPICS) == configs
    assert set(bench.kafka.observe([*TOPICS, "rectest.before", "rectest.evil.results"])) == {*TOPICS, "rectest.before"}


def test_retained_topics_and_schema_outlive_their_resource(bench: AppliedPipeline) -> None:
    """The same resource uses them again when it is applied once more."""
    bench.edit(reclaimPolicy="Retain")
    bench.apply()
    release(bench.document, platform=Platform(), actuators=bench.actuators)
    assert bench.existing() == (set(TOPICS), True)
    assert bench.apply() == WELL


def test_retained_data_of_deleted_pipelines_is_listed_and_removed_on_request(
    bench: AppliedPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
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
    retained = {entry["schema"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert (retained[SCHEMA]["topics"], retained[SCHEMA]["owner"]["uid"]) == (sorted(TOPICS), "uid-1")
    assert retained[SCHEMA]["roles"] == [f"{SCHEMA}_owner", f"{SCHEMA}_writer", f"{SCHEMA}_reader"]
    assert main([*arguments, "--remove", "rectest/orders"]) == 0
    assert bench.existing() == (set(), False)
    assert main([*arguments, "--remove", "rectest/orders"]) == 1
    assert "there is no retained data" in capsys.readouterr().err
