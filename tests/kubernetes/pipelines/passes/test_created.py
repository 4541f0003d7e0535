"""Tests of passes over a new pipeline: which objects they create, and what they report in the status."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from kafka_admin import KafkaAdmin
from tidemill_contract.runtime import WorkloadSettings
from tidemill_operator.actuators.kubernetes.api import EVENT, KINDS
from tidemill_operator.cluster.event_recorder import EventRecorder
from tidemill_operator.cluster.figures_writer import FiguresWriter
from tidemill_operator.cluster.queue import Result
from tidemill_operator.keys import Key
from tidemill_operator.observer.figures import Figures, Observation

pytestmark = [pytest.mark.kubernetes, pytest.mark.integration]


def test_a_new_pipeline_gets_all_its_objects_and_becomes_ready(
    cluster: Any, data: Any, orders: Key, namespace: str
) -> None:
    (configs,) = [name for _, name in cluster.children(namespace) if name.startswith("tidemill-pipelines")]
    assert set(cluster.children(namespace)) == {
        ("ConfigMap", "orders-config"),
        ("ConfigMap", configs),
        ("Secret", "orders-credentials"),
        ("Secret", "tidemill-ingest-secrets"),
        ("Secret", "tidemill-api-secrets"),
        ("Service", "orders-ingest"),
        ("Service", "orders-api"),
        *((kind, name) for kind in ("Deployment", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy")
          for name in ("orders-processor", "tidemill-ingest", "tidemill-api")),
    }  # fmt: skip
    assert len(data.topics(namespace)) == 3
    assert data.has_schema(namespace, "orders")
    status = cluster.get(orders)["status"]
    assert {c["type"]: c["status"] for c in status["conditions"]} == {
        "Ready": "True",
        "Progressing": "False",
        "TopicsReady": "True",
        "SchemaReady": "True",
        "ProcessorsReady": "True",
        "IngestReady": "True",
        "APIReady": "True",
    }
    assert status["observedGeneration"] == 1
    assert status["endpoints"] == {
        "ingest": f"http://orders-ingest.{namespace}.svc:8080",
        "api": f"http://orders-api.{namespace}.svc:8081",
    }
    assert status["replicas"] == 1


def test_a_second_pass_writes_nothing(cluster: Any, passes: Any, orders: Key, namespace: str) -> None:
    passes.once(orders)  # the status may still lack the rollout of the last Deployment
    before = cluster.versions(namespace)
    passes.api.written.clear()
    assert passes.once(orders) is Result.SETTLED
    assert passes.api.written == []
    assert cluster.versions(namespace) == before


def test_figures_of_the_observer_and_conditions_of_passes_share_the_status(
    cluster: Any, passes: Any, orders: Key, namespace: str
) -> None:
    """A pass keeps the observer's figures, and a second measurement writes nothing."""
    observer = passes.observer()
    observer.watch(orders, cluster.get(orders)["status"])
    observer.measure()
    status = cluster.get(orders)["status"]
    assert (status["lag"], status["lagSeconds"]) == (0, 0)
    assert "Ready" in {condition["type"] for condition in status["conditions"]}
    passes.once(orders)
    before = cluster.versions(namespace)
    assert passes.once(orders) is Result.SETTLED
    observer.measure()
    assert cluster.versions(namespace) == before
    assert cluster.get(orders)["status"]["lag"] == 0


@pytest.mark.fault("figures-unreadable", "condition FiguresUnavailable, and blank columns")
def test_figures_that_cannot_be_read_are_reported_in_a_separate_condition(
    cluster: Any, passes: Any, orders: Key, namespace: str
) -> None:
    """A pass keeps the condition. Readable figures remove it. Each change creates one Event."""
    observation = Observation(None, "Kafka does not answer", 1.8e9)
    writer = FiguresWriter(passes.api, EventRecorder(passes.api, "test"))
    writer.update(orders, observation)
    passes.once(orders)
    assert cluster.condition(orders, "FiguresUnavailable") == ("True", "Unreachable")
    assert cluster.condition(orders, "Ready")[0] == "True"
    writer.update(orders, Observation(Figures(7, 1.0, None, None, 1.8e9), "", 1.8e9))
    assert cluster.condition(orders, "FiguresUnavailable") == ("", "")
    assert cluster.get(orders)["status"]["lag"] == 7
    reasons = [event["reason"] for event in cluster.api.list(EVENT, namespace)]
    assert (reasons.count("FiguresUnavailable"), reasons.count("FiguresAvailable")) == (1, 1)


def test_a_source_on_another_kafka_uses_the_login_of_a_secret(
    cluster: Any, passes: Any, data: Any, namespace: str, make: Callable[..., Key]
) -> None:
    """The operator may read the Secret, and the processors mount it. A missing Secret is named in the status."""
    topic = f"crm.{namespace}"
    KafkaAdmin(data.servers.kafka).create(topic, 3)
    source = {
        "kafka": {"bootstrapServers": data.servers.kafka, "secretRef": {"name": "crm"}},
        "topic": {"name": topic, "managed": False},
        "fields": [{"name": "country", "type": "string"}],
    }
    key = make("far", namespace, source=source)
    passes.once(key)
    assert cluster.condition(key, "TopicsReady") == ("False", "InvalidSpec")
    conditions = str(cluster.get(key)["status"]["conditions"])
    assert f"Secret {namespace}/crm: there is no such Secret; create it in the pipeline's namespace" in conditions
    login = {"security.protocol": base64.b64encode(b"PLAINTEXT\n").decode()}
    metadata = {"name": "crm", "namespace": namespace}
    cluster.api.create({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": login})
    passes.until(key, Result.SETTLED)
    first = cluster.get(key)["status"]["topics"][0]
    assert (first["name"], first["partitions"], first["kafka"]) == (topic, 3, source["kafka"])
    pod = cluster.child(namespace, "Deployment", "far-processor")["spec"]["template"]["spec"]
    assert {"crm"} == {volume["secret"]["secretName"] for volume in pod["volumes"] if volume["name"] == "source-kafka"}
    assert f"{namespace}.far.dead-letters" in data.topics(namespace)
    observer = passes.observer()
    observer.watch(key, cluster.get(key)["status"])
    observer.measure()
    assert cluster.get(key)["status"]["lag"] == 0


def test_the_scale_subresource_counts_and_selects_the_processors(cluster: Any, orders: Key, namespace: str) -> None:
    path = f"/apis/tidemill.dev/v1alpha1/namespaces/{namespace}/analyticspipelines/orders/scale"
    scale = cluster.api._call("GET", path)
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (1, 1)
    pods = cluster.api.list(KINDS["Pod"], namespace, selector=scale["status"]["selector"])
    assert [pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in pods] == ["processor"]


def test_passwords_are_only_in_secrets(cluster: Any, orders: Key, namespace: str) -> None:
    """No status, Event, annotation or config contains a password."""
    secret = cluster.child(namespace, "Secret", "orders-credentials")
    passwords = [
        json.loads(base64.b64decode(secret["data"][file]))["password"] for file in ("writer.json", "reader.json")
    ]
    others = [item for (kind, _), item in cluster.children(namespace).items() if kind != "Secret"]
    text = json.dumps([cluster.get(orders), others, cluster.api.list(EVENT, namespace)])
    assert not any(password in text for password in passwords)


def test_shared_workloads_read_their_secrets_from_flat_files(
    cluster: Any, orders: Key, namespace: str, tmp_path: Any
) -> None:
    """A kubelet writes the shared Secrets to files, where the contract's readers find keys and credentials."""
    credentials = cluster.child(namespace, "Secret", "orders-credentials")["data"]
    for component, role in (("api", True), ("ingest", False)):
        folder = tmp_path / component
        folder.mkdir()
        for name, text in cluster.child(namespace, "Secret", f"tidemill-{component}-secrets")["data"].items():
            (folder / name).write_bytes(base64.b64decode(text))
        settings = WorkloadSettings(secrets_dir=folder)
        assert len(settings.api_keys("orders").keys) == 1
        assert (folder / "orders.writer.json").exists() is False
        assert (folder / "orders.reader.json").exists() is role
    assert (
        json.loads(base64.b64decode(credentials["reader.json"]))
        == WorkloadSettings(secrets_dir=tmp_path / "api").credentials("orders", "reader").model_dump()
    )


def test_an_object_of_another_owner_is_reported_and_not_changed(
    cluster: Any, passes: Any, namespace: str, make: Callable[..., Key]
) -> None:
    metadata = {"name": "orders-api", "namespace": namespace}
    foreign = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"port": 80}]}}
    path = f"/api/v1/namespaces/{namespace}/services"
    cluster.api._call("POST", path, body=foreign, query={"fieldManager": "somebody"})
    version = cluster.child(namespace, "Service", "orders-api")["metadata"]["resourceVersion"]
    key = make("orders", namespace)
    passes.until(key, Result.SETTLED)
    assert cluster.condition(key, "APIReady") == ("False", "ResourceConflict")
    assert cluster.condition(key, "Stalled")[0] == "True"
    assert cluster.condition(key, "IngestReady")[0] == "True"
    assert cluster.child(namespace, "Service", "orders-api")["metadata"]["resourceVersion"] == version


def test_an_event_is_created_when_a_condition_changes_and_not_again(
    cluster: Any, passes: Any, orders: Key, namespace: str
) -> None:
    events = [
        (event["type"], event["reason"], event["message"])
        for event in cluster.api.list(EVENT, namespace)
        if event["involvedObject"].get("uid") == orders.uid
    ]
    assert ("Normal", "Applied", "Ready is True") in events
    count = len(events)
    passes.once(orders)
    assert len([e for e in cluster.api.list(EVENT, namespace) if e["involvedObject"].get("uid") == orders.uid]) == count
