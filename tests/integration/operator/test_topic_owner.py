"""Tests of topics that several pipelines use, on a real Postgres: at most one pipeline manages a topic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_operator.actuators.local.secrets import FileSecrets
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.cli.main import main
from tidemill_operator.errors import Reason
from tidemill_operator.laptop.servers import Servers
from tidemill_operator.outcome import Outcome, Rank
from tidemill_operator.plan.build import build_plan, owner_of
from tidemill_operator.settings import Platform

pytestmark = pytest.mark.integration

Ensure = Callable[..., Outcome]
Shown = Callable[..., tuple[int, list[str]]]


def pipeline(name: str, /, **topic: Any) -> AnalyticsPipeline:
    return AnalyticsPipeline.model_validate(
        {
            "apiVersion": "tidemill.dev/v1alpha1",
            "kind": "AnalyticsPipeline",
            "metadata": {"name": name, "namespace": "owntest", "uid": f"uid-{name}", "generation": 1},
            "spec": {
                "source": {
                    "topic": {"partitions": 1, **topic},
                    "fields": [{"name": "ts", "type": "timestamp", "required": True}],
                    "eventTime": {"field": "ts"},
                },
                "aggregations": [
                    {
                        "name": "all",
                        "window": {"type": "tumbling", "size": "1h"},
                        "metrics": [{"name": "events", "function": "count"}],
                    }
                ],
            },
        }
    )


@pytest.fixture
def ensure(servers: Servers, tmp_path: Path) -> Iterator[Ensure]:
    """Return a function that creates a pipeline's schema; the schemas are deleted after the test."""
    actuator, secrets = PostgresSchemas(servers.postgres), FileSecrets(tmp_path)
    schemas = {}

    def run(name: str, /, *, adopt: bool = False, cluster: str = "here", exists: bool = True, **topic: Any) -> Outcome:
        resource = pipeline(name, **topic)
        plan, owner = build_plan(resource, Platform(), 1), owner_of(resource, Platform(cluster_id=cluster))
        schemas[name] = plan.schema, owner
        logins = secrets.ensure("owntest", name, writer=plan.schema.writer, reader=plan.schema.reader)
        (outcome,) = actuator.ensure(plan.schema, owner=owner, secrets=logins, adopt=adopt, exists=lambda *_: exists)
        return outcome

    yield run
    for schema, owner in schemas.values():
        actuator.release(schema, owner=owner, reclaim="Delete")


@pytest.fixture
def shown(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shown:
    """Return a function that runs `tidemill plan` without Kafka, and returns its exit code and lines."""
    monkeypatch.setenv("TIDEMILL_POSTGRES_URL", servers.postgres.url)
    monkeypatch.setenv("TIDEMILL_CLUSTER_ID", "here")
    monkeypatch.delenv("TIDEMILL_KAFKA_BROKERS", raising=False)

    def run(name: str, /, *, adopt: bool = False, **topic: Any) -> tuple[int, list[str]]:
        document = pipeline(name, **topic).model_dump(mode="json", by_alias=True, exclude_unset=True)
        document["metadata"]["annotations"] = {"tidemill.dev/adopt": "true"} if adopt else {}
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(document))
        code = main(["plan", str(file), "--data-dir", str(tmp_path / "none")])
        return code, capsys.readouterr().out.splitlines()

    return run


SHARED = "owntest.shared"
MANAGED = (
    "spec.source.topic.name: topic owntest.shared is managed by the pipeline owntest/first, which was first;"
    " name another topic; pipelines can share a topic if each of them sets managed: false"
)


def test_the_first_pipeline_manages_a_topic_and_a_second_is_refused(ensure: Ensure, servers: Servers) -> None:
    """The second gets no schema. A further pass of the first changes nothing."""
    assert ensure("first", name=SHARED).rank == Rank.DONE
    refused = ensure("second", name=SHARED)
    assert (refused.rank, refused.reason, refused.message) == (Rank.FAILED, Reason.RESOURCE_CONFLICT, MANAGED)
    with psycopg.connect(servers.postgres.url) as connection:
        rows = connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = 'owntest__second'").fetchall()
    assert rows == []
    second = ensure("first", name=SHARED)
    assert (second.rank, second.changed) == (Rank.DONE, 0)


def test_a_managed_topic_cannot_be_read_by_another_pipeline(ensure: Ensure) -> None:
    """A pipeline that reads a topic could also write to it, through its ingest."""
    ensure("first", name=SHARED)
    refused = ensure("second", name=SHARED, managed=False)
    assert (refused.rank, refused.reason, refused.message) == (Rank.FAILED, Reason.RESOURCE_CONFLICT, MANAGED)


def test_many_pipelines_can_read_a_topic_that_none_manages(ensure: Ensure) -> None:
    """None of them can begin to manage it while another reads it."""
    assert ensure("first", name=SHARED, managed=False).rank == Rank.DONE
    assert ensure("second", name=SHARED, managed=False).rank == Rank.DONE
    refused = ensure("second", name=SHARED)
    assert "topic owntest.shared is read by the pipeline owntest/first, which was first" in refused.message


def test_a_topic_is_free_when_its_pipeline_has_changed_to_another_topic(ensure: Ensure) -> None:
    ensure("first", name=SHARED)
    assert ensure("first", name="owntest.other").rank == Rank.DONE
    assert ensure("second", name=SHARED).rank == Rank.DONE


def test_a_reader_whose_schema_has_no_note_of_its_topic_is_not_refused(ensure: Ensure, servers: Servers) -> None:
    """The schema of an earlier version does not note that the pipeline only reads its topic."""
    ensure("second", name=SHARED, managed=False)
    with psycopg.connect(servers.postgres.url) as connection:
        connection.execute("COMMENT ON TABLE owntest__second._offsets IS NULL")
    assert ensure("first", name=SHARED).rank == Rank.DONE
    assert ensure("second", name=SHARED, managed=False).rank == Rank.DONE


def test_a_topic_belongs_to_the_first_pipeline_even_if_named_after_another(ensure: Ensure) -> None:
    ensure("first", name="owntest.second.events")
    refused = ensure("second")
    assert "topic owntest.second.events is managed by the pipeline owntest/first" in refused.message


def test_pipelines_of_different_clusters_can_use_the_same_topic_name(ensure: Ensure) -> None:
    """Their operators may share a Postgres, but not a Kafka."""
    ensure("first", name=SHARED)
    assert ensure("second", name=SHARED, cluster="there").rank == Rank.DONE


def test_a_plan_refuses_a_topic_that_another_pipeline_manages(ensure: Ensure, shown: Shown) -> None:
    """The message is that of the condition. The adopt annotation prevents the refusal."""
    ensure("first", name=SHARED)
    assert shown("first", name=SHARED)[0] == 0
    code, lines = shown("second", name=SHARED)
    assert (code, lines[-2:]) == (1, [f"! {MANAGED}", "refused; nothing is created"])
    assert shown("second", name=SHARED, adopt=True)[0] == 0
    assert shown("third", name="owntest.third")[0] == 0


def test_a_plan_refuses_an_existing_role_of_another_owner(servers: Servers, shown: Shown) -> None:
    with psycopg.connect(servers.postgres.url, autocommit=True) as connection:
        connection.execute("CREATE ROLE owntest__first_writer")
        try:
            code, lines = shown("first", name=SHARED)
        finally:
            connection.execute("DROP ROLE owntest__first_writer")
    assert code == 1
    assert "! role owntest__first_writer exists and belongs to another owner (comment: none)" in lines[-2]


def test_a_topic_can_be_adopted_only_from_a_deleted_pipeline(ensure: Ensure) -> None:
    """If the deleted pipeline is created again, the topic belongs to the adopter."""
    ensure("first", name=SHARED)
    assert ensure("second", name=SHARED, adopt=True).message == MANAGED
    assert ensure("second", name=SHARED, adopt=True, exists=False).rank == Rank.DONE
    assert "is managed by the pipeline owntest/second" in ensure("first", name=SHARED).message


def test_a_pipeline_cannot_read_the_results_topic_of_another_pipeline(ensure: Ensure) -> None:
    """This holds even if the platform allows topics of other namespaces."""
    ensure("first")
    refused = ensure("second", name="owntest.first.results", managed=False)
    assert "topic owntest.first.results is managed by the pipeline owntest/first" in refused.message
