"""Tests of `tidemill plan` without servers, and of its check of schemas and generations."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tidemill_operator.cli import plan as command
from tidemill_operator.cli.live_servers import LiveServers
from tidemill_operator.cli.main import main
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.live import LiveSchema, Owner
from tidemill_operator.settings import Platform

Document = dict[str, Any]
EXAMPLE = Path(__file__).parents[4] / "crds" / "examples" / "flights.yaml"


@pytest.fixture(autouse=True)
def no_servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove all settings, so that neither the environment nor a running `up` names servers."""
    for name in [name for name in os.environ if name.startswith("TIDEMILL_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def write_file(folder: Path, *documents: Document) -> str:
    path = folder / "pipelines.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    return str(path)


def test_without_servers_everything_is_new(capsys: pytest.CaptureFixture[str]) -> None:
    """Each topic, table and workload has a line. The last line counts them."""
    assert main(["plan", str(EXAMPLE)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "no servers are known, so everything is shown as new"
    assert lines[2] == "analytics/flights, generation 1"
    assert "+ topic analytics.flights.events (partitions 6, replicationFactor 1)" in lines
    assert "+ table overall_v1 (window_start, _rev, _since, _count, " in "\n".join(lines)
    assert "+ workload flights-processor (replicas 1)" in lines
    assert lines[-1] == f"{len(lines) - 4} to create, 0 to change, 0 to remove"


def document(name: str, **spec: Any) -> Document:
    aggregation = {
        "name": "all",
        "window": {"type": "tumbling", "size": "1h"},
        "metrics": [{"name": "orders", "function": "count"}],
    }
    metadata = {"name": name, "namespace": "shop"}
    return {
        "apiVersion": "tidemill.dev/v1alpha1",
        "kind": "AnalyticsPipeline",
        "metadata": metadata,
        "spec": {"aggregations": [aggregation], **spec},
    }


def test_everything_that_a_pipeline_reads_has_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lookups, another Kafka cluster and inputs have a line each, with the Secret that they need."""
    fields = [{"name": "sku", "type": "string"}]
    rows = [{"name": name, "type": "string"} for name in ("category", "price", "city", "size")]
    elsewhere = document(
        "elsewhere",
        source={
            "kafka": {"bootstrapServers": "other:9092", "secretRef": {"name": "other-kafka"}},
            "topic": {"name": "crm.orders", "managed": False},
            "fields": fields,
        },
        lookups=[
            {
                "name": "products",
                "on": "sku",
                "from": {"table": "shop.products", "key": "sku", "secretRef": {"name": "shop-db"}},
                "fields": [rows[0]],
            },
            {
                "name": "prices",
                "on": "sku",
                "from": {"configMap": "prices", "file": "prices.csv", "key": "sku"},
                "fields": [rows[1]],
            },
            {"name": "cities", "on": "sku", "from": {"topic": "shop.cities"}, "fields": [rows[2]]},
            {
                "name": "sizes",
                "on": "sku",
                "from": {"query": "SELECT sku,\n size FROM s", "key": "sku", "secretRef": {"name": "shop-db"}},
                "fields": [rows[3]],
            },
        ],
    )
    inputs = document(
        "inputs",
        source={
            "fields": fields,
            "mqtt": {"broker": "mqtts://broker:8883", "topics": ["a/+", "b"], "secretRef": {"name": "mqtt"}},
            "webhooks": [{"name": "hub", "signature": "github", "secretRef": {"name": "hooks", "key": "hub"}}],
            "connectors": [
                {"name": "files", "class": "x.Source", "secrets": {"token": {"name": "files", "key": "token"}}}
            ],
        },
        transform={"python": {"configMap": "enrich", "file": "enrich.py", "function": "enrich"}},
    )
    assert main(["plan", write_file(tmp_path, elsewhere, inputs)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  reads ")]
    assert [line.removeprefix("  reads ") for line in lines] == [
        "topic crm.orders, Kafka other:9092, Secret other-kafka",
        "lookup products, table shop.products, by sku, Secret shop-db",
        "lookup prices, file prices.csv of ConfigMap prices, by sku",
        "lookup cities, topic shop.cities, by sku",
        "lookup sizes, query SELECT sku, size FROM s, by sku, Secret shop-db",
        "mqtt mqtts://broker:8883, topics a/+ b, Secret mqtt",
        "webhook hub, POST /v1/pipelines/inputs/webhooks/hub, Secret hooks, key hub",
        "connector files, x.Source, Secret files",
        "python enrich, file enrich.py of ConfigMap enrich, at most 30s for an event",
    ]
    several = {"fields": fields, "topic": {"managed": False}}
    listed = document("listed", source={**several, "topics": ["shop.a", "shop.b"]})
    matched = document("matched", source={**several, "topicPattern": r"shop\..*"})
    assert main(["plan", write_file(tmp_path, listed, matched)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  reads ")]
    assert [line.removeprefix("  reads ") for line in lines] == [
        "topic shop.a, the platform's Kafka",
        "topic shop.b, the platform's Kafka",
        r"topics shop\..*, the platform's Kafka",
    ]
    assert main(["plan", write_file(tmp_path, elsewhere), "--output", "json"]) == 0
    (pipeline,) = json.loads(capsys.readouterr().out)["pipelines"]
    assert pipeline["reads"][0] == {
        "kind": "topic",
        "name": "crm.orders",
        "place": "Kafka other:9092",
        "secret": "other-kafka",
    }


@pytest.mark.parametrize("output", ["yaml", "json"])
def test_the_whole_plan_is_printed_as_data(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The output is the same each time, and contains no password."""
    assert main(["plan", str(EXAMPLE), "--output", output]) == 0
    text = capsys.readouterr().out
    assert main(["plan", str(EXAMPLE), "--output", output]) == 0
    assert capsys.readouterr().out == text
    data = yaml.safe_load(text)
    assert data["observed"] == {"kafka": None, "postgres": None}
    (pipeline,) = data["pipelines"]
    assert [topic["partitions"] for topic in pipeline["topics"]] == [6, 4, 4, 4]
    assert [row["name"] for row in pipeline["schema"]["aggregations"]] == [
        "by_carrier",
        "by_origin",
        "by_route",
        "overall",
    ]
    assert [workload["name"] for workload in pipeline["workloads"]] == [
        "flights-processor",
        "tidemill-ingest",
        "tidemill-api",
    ]
    assert pipeline["config"]["spec"]["source"]["topic"]["name"] == "analytics.flights.events"
    assert pipeline["refused"] == []
    assert {change["action"] for change in pipeline["changes"]} == {"create"}
    assert "password" not in text.lower()


def test_yaml_and_json_are_the_same_data(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", str(EXAMPLE), "--output", "yaml"])
    data = yaml.safe_load(capsys.readouterr().out)
    main(["plan", str(EXAMPLE), "--output", "json"])
    assert json.loads(capsys.readouterr().out) == data


def test_each_pipeline_of_a_file_has_a_section(
    tmp_path: Path, document: Document, capsys: pytest.CaptureFixture[str]
) -> None:
    other = copy.deepcopy(document)
    other["metadata"]["name"] = "returns"
    assert main(["plan", write_file(tmp_path, document, other)]) == 0
    shown = capsys.readouterr().out
    assert "shop/orders, generation 1\n+ topic shop.orders.events" in shown
    assert "shop/returns, generation 1\n+ topic shop.returns.events" in shown


def test_a_spec_that_cannot_be_applied_is_refused(
    tmp_path: Path, document: Document, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command ends with exit code 1, prints the refusal, and shows no changes."""
    document["spec"]["source"]["topic"] = {"config": {"min.insync.replicas": "2"}}
    file = write_file(tmp_path, document)
    assert main(["plan", file]) == 1
    assert capsys.readouterr().out.splitlines()[2:] == [
        "shop/orders, generation 1",
        "! spec.source.topic.config.min.insync.replicas: 2 is more than the replication factor 1, so no record could"
        " be written; write at most 1",
        "refused; nothing is created",
    ]
    assert main(["plan", file, "--output", "json"]) == 1
    (pipeline,) = json.loads(capsys.readouterr().out)["pipelines"]
    assert (pipeline["changes"], [refused["reason"] for refused in pipeline["refused"]]) == ([], ["InvalidSpec"])


INVALID: list[tuple[str, str]] = [
    ("a: [", "not valid YAML"),
    ("kind: AnalyticsPipeline", "metadata: is missing"),
    ("", "the file is empty"),
]


@pytest.mark.parametrize(("text", "message"), INVALID, ids=["not YAML", "no pipeline", "empty"])
def test_an_invalid_file_is_exit_code_2(
    tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Faults are on stderr, with the name of the file."""
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert main(["plan", str(path)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert str(path) in shown.err
    assert message in shown.err


def test_a_missing_file_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tmp_path / "none.yaml")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_the_platform_defaults_come_from_the_environment(
    tmp_path: Path, document: Document, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document["spec"]["source"]["topic"] = {"name": "bank.payments"}
    file = write_file(tmp_path, document)
    assert main(["plan", file]) == 2
    capsys.readouterr()
    monkeypatch.setenv("TIDEMILL_TOPIC_PREFIXES", "bank.")
    monkeypatch.setenv("TIDEMILL_DEFAULT_PARTITIONS", "9")
    assert main(["plan", file]) == 0
    assert "+ topic bank.payments (partitions 9, replicationFactor 1)" in capsys.readouterr().out


def test_a_wrong_setting_is_named_in_the_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TIDEMILL_POSTGRES_URL", "mysql://x")
    assert main(["plan", str(EXAMPLE)]) == 1
    assert "TIDEMILL_POSTGRES_URL" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [("TIDEMILL_POSTGRES_URL", "postgresql://me:s3cret@127.0.0.1:9/x"), ("TIDEMILL_KAFKA_BROKERS", "127.0.0.1:9")],
)
def test_an_unreachable_server_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    """A plan without the server would be a guess. The message has the address without the password."""
    monkeypatch.setenv(name, value)
    monkeypatch.setattr("tidemill_operator.cli.live_servers.ANSWER_SECONDS", 0.5)
    assert main(["plan", str(EXAMPLE)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "127.0.0.1:9" in shown.err
    assert "s3cret" not in shown.err


@dataclass(frozen=True)
class FakeServers(LiveServers):
    """Servers whose Postgres has this schema."""

    live: LiveSchema | None = None

    def schema(self, name: str) -> LiveSchema | None:
        return self.live


def fake_servers(live: LiveSchema | None, uids: dict[str, str] | None = None) -> FakeServers:
    return FakeServers(Platform(), uids, live)


def planned_errors(document: Document, servers: LiveServers) -> list[TidemillError]:
    return list(command.plan_document(document, servers).refusals)


OWNED = LiveSchema(owner=Owner("shop", "orders", "uid-1", "local"))
UIDS: list[tuple[str | None, dict[str, str] | None, Owner, bool, str]] = [
    (
        None,
        None,
        Owner("shop", "orders", "uid-1", "local"),
        False,
        "the file has no uid, so the uid of the schema counts",
    ),
    ("uid-1", None, Owner("shop", "orders", "uid-1", "local"), False, "the file has the uid of the schema"),
    ("uid-2", None, Owner("shop", "orders", "uid-1", "local"), True, "the file has another uid"),
    (
        None,
        {"shop/orders": "uid-1"},
        Owner("shop", "orders", "uid-1", "local"),
        False,
        "the running up has the uid of the schema",
    ),
    (None, {"shop/orders": "uid-2"}, Owner("shop", "orders", "uid-1", "local"), True, "the running up has another uid"),
    (None, {}, Owner("shop", "orders", "uid-1", "local"), True, "the running up would choose a new uid"),
    (None, None, Owner("shop", "orders", "uid-1", "east"), True, "the schema belongs to another cluster"),
    (None, None, Owner("bank", "orders", "uid-1", "local"), True, "the schema belongs to another namespace"),
]


@pytest.mark.parametrize(("uid", "uids", "owner", "conflict", "why"), UIDS, ids=[row[4] for row in UIDS])
def test_a_schema_of_another_owner_is_refused_until_adopted(
    document: Document, uid: str | None, uids: dict[str, str] | None, owner: Owner, conflict: bool, why: str
) -> None:
    """A schema of another owner is refused without the annotation that adopts the schema."""
    del document["metadata"]["uid"]
    if uid is not None:
        document["metadata"]["uid"] = uid
    servers = fake_servers(LiveSchema(owner=owner), uids)
    reasons = [error.reason for error in planned_errors(document, servers)]
    assert reasons == ([Reason.RESOURCE_CONFLICT] if conflict else []), why
    document["metadata"]["annotations"] = {"tidemill.dev/adopt": "true"}
    assert planned_errors(document, servers) == []


def test_a_topic_that_another_pipeline_of_the_file_manages_is_refused(
    tmp_path: Path, document: Document, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first pipeline manages the topic. The second may neither manage nor read it, unless both only read it."""
    other = copy.deepcopy(document)
    other["metadata"] |= {"name": "returns", "uid": "uid-2"}
    other["spec"]["source"]["topic"] = {"name": "shop.orders.events", "partitions": 6}
    assert main(["plan", write_file(tmp_path, document, other)]) == 1
    data = (
        "! spec.source.topic.name: topic shop.orders.events is managed by the pipeline shop/orders, which was first;"
        " name another topic; pipelines can share a topic if each of them sets managed: false"
    )
    shown = capsys.readouterr().out
    assert shown.splitlines()[-3:] == ["shop/returns, generation 1", data, "refused; nothing is created"]
    assert "+ topic shop.orders.events" in shown
    other["spec"]["source"]["topic"] = {"name": "shop.orders.events", "managed": False}
    assert main(["plan", write_file(tmp_path, document, other)]) == 1
    document["spec"]["source"]["topic"] = other["spec"]["source"]["topic"] = {"name": "shop.all", "managed": False}
    assert main(["plan", write_file(tmp_path, document, other)]) == 0


def test_the_generation_follows_the_accepted_spec(document: Document) -> None:
    """An edit that processors read adds one. A document from a cluster has a generation already."""
    generation = document["metadata"].pop("generation")
    assert generation == 1
    live = LiveSchema(owner=OWNED.owner, generation=4, accepted=copy.deepcopy(document["spec"]))
    assert command.plan_document(document, fake_servers(live)).plan.schema.generation == 4
    document["spec"]["suspend"] = True
    assert command.plan_document(document, fake_servers(live)).plan.schema.generation == 4
    document["spec"]["transform"] = {"filter": "amount > 0"}
    assert command.plan_document(document, fake_servers(live)).plan.schema.generation == 5
    document["metadata"]["generation"] = 9
    assert command.plan_document(document, fake_servers(live)).plan.schema.generation == 9
