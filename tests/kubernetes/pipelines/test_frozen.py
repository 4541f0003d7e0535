"""Tests of a leader that freezes in mid-pass and wakes during a pass of its successor.

The operators are processes on a real API server, Kafka and Postgres.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tidemill_contract import names
from tidemill_operator.actuators.kafka.topics import KafkaTopics
from tidemill_operator.actuators.kubernetes.api import LEASE, Kind
from tidemill_operator.keys import Key
from tidemill_operator.laptop.servers import Servers

pytestmark = [pytest.mark.kubernetes, pytest.mark.integration, pytest.mark.slow]

REPLICA_SET = Kind("apps/v1", "ReplicaSet", "replicasets")
HOME, NAME = "tidemill-system", "tidemill-operator"
PROGRAM = str(Path(__file__).with_name("freezing_operator.py"))


def is_stopped(operator: Any) -> bool:
    """Return whether a signal has stopped the process."""
    return Path(f"/proc/{operator.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def source(partitions: int) -> dict[str, Any]:
    fields = [{"name": "country", "type": "string"}, {"name": "amount", "type": "number"}]
    return {"topic": {"partitions": partitions, "replicationFactor": 1}, "fields": fields}


@pytest.mark.parametrize(
    ("system", "writes"),
    [
        ("postgres", 30),  # inside the transaction that creates the schema, with its locks
        pytest.param("kafka", 1, marks=pytest.mark.matrix),  # after the first of three topics
        pytest.param("kubernetes", 1, marks=pytest.mark.matrix),  # after the first of three Deployments
    ],
)
@pytest.mark.fault(
    "leader-frozen-in-mid-pass", "the successor applies its spec in spite of locks; no template is reverted"
)
def test_a_leader_that_wakes_in_mid_pass_reverts_nothing_of_its_successor(
    cluster: Any,
    servers: Servers,
    start_operator: Callable[..., Any],
    namespace: str,
    make: Callable[..., Key],
    eventually: Any,
    system: str,
    writes: int,
) -> None:
    first = start_operator(PROGRAM, system, str(writes))
    eventually(first.leads, what="the first operator leads")
    key = make("orders", namespace)
    eventually(lambda: is_stopped(first), seconds=120.0, what="the first operator is frozen in its pass")

    # The successor applies a newer spec in spite of the locks of the frozen leader.
    second = start_operator()
    eventually(second.leads, seconds=120.0, what="the second operator leads")
    cluster.patch(key, spec={"source": source(4), "processor": {"replicas": 2}})
    cluster.await_ready(key, generation=2, seconds=240.0)
    replica_sets = {item["metadata"]["uid"] for item in cluster.api.list(REPLICA_SET, namespace)}

    # The first leader wakes while the successor works on a third spec.
    cluster.patch(key, spec={"source": source(6), "processor": {"replicas": 3}})
    first.process.send_signal(signal.SIGCONT)
    eventually(lambda: first.process.poll() is not None, seconds=60.0, what="the first operator ends")
    assert first.process.returncode == 1
    assert "woken" in first.log.read_text()
    cluster.await_ready(key, generation=3, seconds=240.0)

    conditions = {item["type"]: item["status"] for item in cluster.get(key)["status"]["conditions"]}
    assert "Stalled" not in conditions
    assert conditions.pop("Progressing") == "False"
    assert set(conditions.values()) == {"True"}
    topics = KafkaTopics(servers.kafka).observe([f"{namespace}.orders.{part}" for part in ("events", "dead-letters")])
    assert topics[f"{namespace}.orders.events"].partitions == 6
    deployment = cluster.child(namespace, "Deployment", "orders-processor")
    assert deployment["spec"]["replicas"] == 3
    later = {item["metadata"]["uid"] for item in cluster.api.list(REPLICA_SET, namespace)}
    assert replica_sets <= later, "a template of the successor was reverted"
    assert len(later) <= len(replica_sets) + 1, "more than the processor's new config has changed"
    # The schema names the epoch of the second leader, which later leaders compare with theirs.
    schema = names.schema(namespace, "orders")
    with psycopg.connect(servers.postgres.url) as connection:
        query = "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %s"
        ((text,),) = connection.execute(query, (schema,)).fetchall()
        positions = connection.execute(f'SELECT count(*) FROM "{schema}"._offsets').fetchall()
    lease = cluster.api.get(LEASE, HOME, NAME)
    assert json.loads(text)["epoch"] == lease["spec"]["leaseTransitions"] + 1
    assert positions == [(6,)]
