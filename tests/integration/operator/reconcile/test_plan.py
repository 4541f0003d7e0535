"""Tests of `tidemill plan` on a real Kafka and Postgres: it lists exactly what reconcile() then changes."""

from __future__ import annotations

import json

import psycopg
import pytest

from pipelines.applied_pipeline import TOPICS, WELL, AppliedPipeline

pytestmark = pytest.mark.integration


def test_a_plan_makes_nothing(bench: AppliedPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is applied all is new, and after the plan still nothing is there."""
    code, shown = bench.plan(capsys)
    assert code == 0
    assert f"compared with Kafka {bench.servers.kafka} and Postgres {bench.servers.postgres.public_url}" in shown
    assert "+ topic rectest.orders.events (partitions 3, replicationFactor 1)" in shown
    assert shown.endswith("23 to create, 0 to change, 0 to remove\n")
    assert bench.there() == (set(), False)


def test_what_was_applied_is_no_change(bench: AppliedPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything is made, a second pass has an equal status, and the plan has nothing to tell."""
    assert bench.apply() == WELL
    assert bench.there() == (set(TOPICS), True)
    first = bench.status
    assert bench.apply() == WELL
    assert bench.status == first
    code, shown = bench.plan(capsys)
    assert (code, shown.splitlines()[-1]) == (0, "no changes")


def test_an_edit_is_planned_and_then_done(bench: AppliedPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """More partitions, a column, a drifted config: each with both values; then none is left."""
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


def test_a_refused_edit_is_planned_and_then_stalled(bench: AppliedPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan and the status say the same; what runs stays as it is."""
    bench.apply()
    bench.edit(source={**bench.spec["source"], "topic": {"partitions": 2}, "key": "shop"})
    code, shown = bench.plan(capsys)
    lines = shown.splitlines()
    assert (code, lines[-1]) == (1, "refused; the accepted spec stays in force")
    assert bench.apply() == {**WELL, "Stalled": "NotSupported"}
    told = "; ".join(line.removeprefix("! ") for line in lines[3:-1])
    assert bench.message("Stalled") == f"{told}; the accepted spec stays in force"
    assert "spec.source.topic.partitions: 2 is less than the 3 partitions" in told
    assert "spec.source.key: changed from none to shop" in told
    assert bench.kafka.observe(TOPICS)[TOPICS[0]].partitions == 3


def test_the_plan_as_data_names_what_was_looked_at(bench: AppliedPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the administrator's password."""
    bench.apply()
    code, shown = bench.plan(capsys, "--output", "json")
    told = json.loads(shown)
    assert (code, told["pipelines"][0]["changes"]) == (0, [])
    assert told["observed"] == {"kafka": bench.servers.kafka, "postgres": bench.servers.postgres.public_url}
    assert bench.servers.postgres.password not in shown


def test_a_plan_takes_no_transaction_id(bench: AppliedPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """Postgres gives one to whatever writes; housekeeping may take one now and then, but not each time."""

    def next_transaction() -> int:
        with psycopg.connect(bench.servers.postgres.url) as connection:
            row = connection.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint").fetchone()
        assert row is not None
        return int(row[0])

    bench.apply()
    bench.edit(processor={"replicas": 2})
    taken = []
    for _ in range(3):
        before = next_transaction()
        bench.plan(capsys)
        taken.append(next_transaction() - before)
    assert min(taken) == 0
