"""Tests of `tidemill plan` on a real Kafka and Postgres: it lists exactly what reconcile() then changes."""

from __future__ import annotations

import json

import psycopg
import pytest

from pipelines.applied_pipeline import TOPICS, WELL, AppliedPipeline

pytestmark = pytest.mark.integration


def test_a_plan_creates_nothing(bench: AppliedPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan of a new resource lists everything as new and leaves the servers empty."""
    code, shown = bench.plan(capsys)
    assert code == 0
    assert f"compared with Kafka {bench.servers.kafka} and Postgres {bench.servers.postgres.public_url}" in shown
    assert "+ topic rectest.orders.events (partitions 3, replicationFactor 1)" in shown
    assert shown.endswith("23 to create, 0 to change, 0 to remove\n")
    assert bench.existing() == (set(), False)


def test_a_second_pass_and_a_plan_find_no_change_after_the_first_pass(
    bench: AppliedPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.apply() == WELL
    assert bench.existing() == (set(TOPICS), True)
    first = bench.status
    assert bench.apply() == WELL
    assert bench.status == first
    code, shown = bench.plan(capsys)
    assert (code, shown.splitlines()[-1]) == (0, "no changes")


def test_a_plan_lists_the_changes_of_an_edit_that_the_next_pass_makes(
    bench: AppliedPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each change has both values. After the pass the plan is empty."""
    bench.apply()
    bench.alter_topic(retention_ms="1000")
    metrics = [*bench.spec["aggregations"][0]["metrics"], {"name": "sales", "function": "sum", "field": "amount"}]
    bench.edit(
        source={**bench.spec["source"], "topic": {"partitions": 5}},
        aggregations=[{**bench.spec["aggregations"][0], "metrics": metrics}],
        processor={"replicas": 2},
    )
    code, shown = bench.plan(capsys)
    assert code == 0
    assert shown.splitlines()[2:] == [
        "rectest/orders, generation 2",
        "~ topic rectest.orders.events",
        "    ~ partitions: 3 → 5",
        "    ~ config.retention.ms: 1000 → 604800000",
        "~ table by_shop_v1",
        "    + _sum_amount: double precision",
        "~ config orders.json",
        "    ~ generation: 1 → 2",
        "    ~ spec.source.topic.partitions: 3 → 5",
        "    + spec.aggregations[by_shop].metrics[sales].function: sum",
        "    + spec.aggregations[by_shop].metrics[sales].field: amount",
        "    ~ spec.processor.replicas: 1 → 2",
        "~ workload orders-processor",
        "    ~ replicas: 1 → 2",
        "    ~ processes: with the former config → with the new config",
        "0 to create, 4 to change, 0 to remove",
    ]
    assert bench.kafka.observe(TOPICS)[TOPICS[0]].partitions == 3
    assert bench.apply() == WELL
    assert bench.kafka.observe(TOPICS)[TOPICS[0]].partitions == 5
    assert bench.plan(capsys)[1].splitlines()[-1] == "no changes"


def test_plan_and_status_refuse_an_edit_with_the_same_message(
    bench: AppliedPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pipeline keeps the accepted spec in Kafka."""
    bench.apply()
    bench.edit(source={**bench.spec["source"], "topic": {"partitions": 2}, "key": "shop"})
    code, shown = bench.plan(capsys)
    lines = shown.splitlines()
    assert (code, lines[-1]) == (1, "refused; the accepted spec stays in force")
    assert bench.apply() == {**WELL, "Stalled": "NotSupported"}
    refusals = "; ".join(line.removeprefix("! ") for line in lines[3:-1])
    assert bench.message("Stalled") == f"{refusals}; the accepted spec stays in force"
    assert "spec.source.topic.partitions: 2 is less than the 3 partitions" in refusals
    assert "spec.source.key: changed from none to shop" in refusals
    assert bench.kafka.observe(TOPICS)[TOPICS[0]].partitions == 3


def test_the_plan_as_json_names_its_servers_without_the_password(
    bench: AppliedPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.apply()
    code, shown = bench.plan(capsys, "--output", "json")
    planned = json.loads(shown)
    assert (code, planned["pipelines"][0]["changes"]) == (0, [])
    assert planned["observed"] == {"kafka": bench.servers.kafka, "postgres": bench.servers.postgres.public_url}
    assert bench.servers.postgres.password not in shown


def test_a_plan_takes_no_transaction_id(bench: AppliedPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """Each session that writes takes a transaction id. Postgres itself takes one at times, but not each time."""

    def next_transaction() -> int:
        with psycopg.connect(bench.servers.postgres.url) as connection:
            row = connection.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint").fetchone()
        assert row is not None
        return int(row[0])

    bench.apply()
    bench.edit(processor={"replicas": 2})
    transactions = []
    for _ in range(3):
        before = next_transaction()
        bench.plan(capsys)
        transactions.append(next_transaction() - before)
    assert min(transactions) == 0
