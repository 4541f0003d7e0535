"""One topic, two pipelines that would use it: the first has it, the other is told so; what nobody manages many read."""

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
    """Makes a pipeline's schema; all are gone afterwards."""
    actuator, secrets = PostgresSchemas(servers.postgres), FileSecrets(tmp_path)
    made = {}

    def run(name: str, /, *, adopt: bool = False, cluster: str = "here", there: bool = True, **topic: Any) -> Outcome:
        asked = pipeline(name, **topic)
        plan, owner = build_plan(asked, Platform(), 1), owner_of(asked, Platform(cluster_id=cluster))
        made[name] = plan.schema, owner
        logins = secrets.ensure("owntest", name, writer=plan.schema.writer, reader=plan.schema.reader)
        (outcome,) = actuator.ensure(plan.schema, owner=owner, secrets=logins, adopt=adopt, exists=lambda *_: there)
        return outcome

    yield run
    for schema, owner in made.values():
        actuator.release(schema, owner=owner, reclaim="Delete")


@pytest.fixture
def shown(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shown:
    """`tidemill plan` of a pipeline's file, beside the Postgres alone: its exit code and its lines."""
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
TOLD = (
    "spec.source.topic.name: topic owntest.shared is managed by the pipeline owntest/first, which was first;"
    " name another topic; pipelines can share a topic if each of them sets managed: false"
)


def test_the_first_has_it(ensure: Ensure, servers: Servers) -> None:
    """The other one is told whose it is, and nothing of it is made; the first goes on, and writes nothing again."""
    assert ensure("first", name=SHARED).rank == Rank.DONE
    refused = ensure("second", name=SHARED)
    assert (refused.rank, refused.reason, refused.message) == (Rank.FAILED, Reason.RESOURCE_CONFLICT, TOLD)
    with psycopg.connect(servers.postgres.url) as connection:
        found = connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = 'owntest__second'").fetchall()
    assert found == []
    again = ensure("first", name=SHARED)
    assert (again.rank, again.changed) == (Rank.DONE, 0)


def test_nobody_else_reads_it_either(ensure: Ensure) -> None:
    """Who reads a topic can write to it as well, by the ingest of its own."""
    ensure("first", name=SHARED)
    refused = ensure("second", name=SHARED, managed=False)
    assert (refused.rank, refused.reason, refused.message) == (Rank.FAILED, Reason.RESOURCE_CONFLICT, TOLD)


def test_many_read_what_nobody_manages(ensure: Ensure) -> None:
    """And none of them begins to manage it while another one reads."""
    assert ensure("first", name=SHARED, managed=False).rank == Rank.DONE
    assert ensure("second", name=SHARED, managed=False).rank == Rank.DONE
    refused = ensure("second", name=SHARED)
    assert "topic owntest.shared is read by the pipeline owntest/first, which was first" in refused.message


def test_a_topic_that_is_let_go_may_be_taken(ensure: Ensure) -> None:
    """By a pipeline that has begun to read another one."""
    ensure("first", name=SHARED)
    assert ensure("first", name="owntest.other").rank == Rank.DONE
    assert ensure("second", name=SHARED).rank == Rank.DONE


def test_who_read_it_before_that_was_noted_goes_on(ensure: Ensure, servers: Servers) -> None:
    """A schema of an earlier version does not say that its topic is only read."""
    ensure("second", name=SHARED, managed=False)
    with psycopg.connect(servers.postgres.url) as connection:
        connection.execute("COMMENT ON TABLE owntest__second._offsets IS NULL")
    assert ensure("first", name=SHARED).rank == Rank.DONE
    assert ensure("second", name=SHARED, managed=False).rank == Rank.DONE


def test_the_topic_of_another_pipelines_name(ensure: Ensure) -> None:
    """Whoever was first, whatever the topic's name suggests."""
    ensure("first", name="owntest.second.events")
    refused = ensure("second")
    assert "topic owntest.second.events is managed by the pipeline owntest/first" in refused.message


def test_other_clusters_have_other_topics(ensure: Ensure) -> None:
    """Two operators may share a Postgres and not a Kafka."""
    ensure("first", name=SHARED)
    assert ensure("second", name=SHARED, cluster="there").rank == Rank.DONE


def test_a_plan_tells_it_before(ensure: Ensure, shown: Shown) -> None:
    """In the words of the condition; with the annotation that takes it over, or as a reader, it is not refused."""
    ensure("first", name=SHARED)
    assert shown("first", name=SHARED)[0] == 0
    code, lines = shown("second", name=SHARED)
    assert (code, lines[-2:]) == (1, [f"! {TOLD}", "refused; nothing is created"])
    assert shown("second", name=SHARED, adopt=True)[0] == 0
    assert shown("third", name="owntest.third")[0] == 0


def test_a_plan_tells_of_roles_that_are_somebody_elses(servers: Servers, shown: Shown) -> None:
    """A role of the name is not taken, whatever it is for."""
    with psycopg.connect(servers.postgres.url, autocommit=True) as connection:
        connection.execute("CREATE ROLE owntest__first_writer")
        try:
            code, lines = shown("first", name=SHARED)
        finally:
            connection.execute("DROP ROLE owntest__first_writer")
    assert code == 1
    assert "! role owntest__first_writer exists and belongs to another owner (comment: none)" in lines[-2]


def test_it_can_be_taken_over_from_who_is_gone(ensure: Ensure) -> None:
    """With the annotation that takes a schema over; not from a pipeline that is there. Who comes back asks anew."""
    ensure("first", name=SHARED)
    assert ensure("second", name=SHARED, adopt=True).message == TOLD
    assert ensure("second", name=SHARED, adopt=True, there=False).rank == Rank.DONE
    assert "is managed by the pipeline owntest/second" in ensure("first", name=SHARED).message


def test_the_results_of_a_pipeline_of_another_namespace(ensure: Ensure) -> None:
    """Where the platform lets topics of other namespaces be read."""
    ensure("first")
    refused = ensure("second", name="owntest.first.results", managed=False)
    assert "topic owntest.first.results is managed by the pipeline owntest/first" in refused.message
