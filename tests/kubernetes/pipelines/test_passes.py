"""Passes over one resource: what is made, that a second pass writes nothing, and that what others do is repaired."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from kafka_admin import KafkaAdmin
from tidemill_contract.runtime import WorkloadSettings
from tidemill_operator.actuators.kubernetes.api import DEPLOYMENT, EVENT, KINDS, PIPELINE, SECRET, SERVICE, Document
from tidemill_operator.cluster.events import Recorder
from tidemill_operator.cluster.observed import ObservedStatus
from tidemill_operator.cluster.queue import Result
from tidemill_operator.cluster.removal.finalizing import FINALIZER
from tidemill_operator.keys import Key
from tidemill_operator.observer.figures import Figures, Observation

pytestmark = [pytest.mark.kubernetes, pytest.mark.integration]


@pytest.fixture
def orders(cluster: Any, passes: Any, namespace: str, make: Callable[..., Key]) -> Key:
    """A pipeline that is ready."""
    key = make("orders", namespace)
    passes.until(key, Result.SETTLED)
    return key


def test_a_new_pipeline_gets_all_it_needs_and_becomes_ready(
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
    passes.once(orders)  # may note that the last Deployment has rolled out
    before = cluster.versions(namespace)
    passes.api.written.clear()
    assert passes.once(orders) is Result.SETTLED
    assert passes.api.written == []
    assert cluster.versions(namespace) == before


def test_figures_are_written_beside_what_passes_write(cluster: Any, passes: Any, orders: Key, namespace: str) -> None:
    """With the operator's rights; a pass leaves them as they are, and a second look has nothing to write."""
    observer = passes.observer()
    observer.watch(orders, cluster.get(orders)["status"])
    observer.look()
    status = cluster.get(orders)["status"]
    assert (status["lag"], status["lagSeconds"]) == (0, 0)
    assert "Ready" in {condition["type"] for condition in status["conditions"]}
    passes.once(orders)
    before = cluster.versions(namespace)
    assert passes.once(orders) is Result.SETTLED
    observer.look()
    assert cluster.versions(namespace) == before
    assert cluster.get(orders)["status"]["lag"] == 0


@pytest.mark.fault("figures-unreadable", "FiguresUnavailable, and blank columns")
def test_figures_that_cannot_be_read_are_a_condition_of_their_own(
    cluster: Any, passes: Any, orders: Key, namespace: str
) -> None:
    """A pass keeps it; it goes when they are known again. One Event each way."""
    seen = Observation(None, "Kafka does not tell", 1.8e9)
    shown = ObservedStatus(passes.api, Recorder(passes.api, "test"))
    shown.show(orders, seen)
    passes.once(orders)
    assert cluster.condition(orders, "FiguresUnavailable") == ("True", "Unreachable")
    assert cluster.condition(orders, "Ready")[0] == "True"
    shown.show(orders, Observation(Figures(7, 1.0, None, None, 1.8e9), "", 1.8e9))
    assert cluster.condition(orders, "FiguresUnavailable") == ("", "")
    assert cluster.get(orders)["status"]["lag"] == 7
    reasons = [event["reason"] for event in cluster.api.list(EVENT, namespace)]
    assert (reasons.count("FiguresUnavailable"), reasons.count("FiguresAvailable")) == (1, 1)


def test_a_source_on_another_cluster_with_a_secret_of_the_users(
    cluster: Any, passes: Any, data: Any, namespace: str, make: Callable[..., Key]
) -> None:
    """The pass reads the Secret with the operator's rights, and the processors mount it."""
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
    told = str(cluster.get(key)["status"]["conditions"])
    assert f"Secret {namespace}/crm: there is no such Secret; create it in the pipeline's namespace" in told
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
    observer.look()
    assert cluster.get(key)["status"]["lag"] == 0


def test_the_scale_subresource_reads_the_processors(cluster: Any, orders: Key, namespace: str) -> None:
    path = f"/apis/tidemill.dev/v1alpha1/namespaces/{namespace}/analyticspipelines/orders/scale"
    scale = cluster.api._call("GET", path)
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (1, 1)
    pods = cluster.api.list(KINDS["Pod"], namespace, selector=scale["status"]["selector"])
    assert [pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in pods] == ["processor"]


def test_secrets_are_only_in_secrets(cluster: Any, orders: Key, namespace: str) -> None:
    """No status, event, annotation or config shows a password."""
    secret = cluster.child(namespace, "Secret", "orders-credentials")
    passwords = [
        json.loads(base64.b64decode(secret["data"][file]))["password"] for file in ("writer.json", "reader.json")
    ]
    others = [item for (kind, _), item in cluster.children(namespace).items() if kind != "Secret"]
    told = json.dumps([cluster.get(orders), others, cluster.api.list(EVENT, namespace)])
    assert not any(password in told for password in passwords)


def test_shared_workloads_find_their_secrets_in_flat_files(
    cluster: Any, orders: Key, namespace: str, tmp_path: Any
) -> None:
    """The files of the aggregated Secrets, as a kubelet writes them, are what the contract's readers look for."""
    own = cluster.child(namespace, "Secret", "orders-credentials")["data"]
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
        json.loads(base64.b64decode(own["reader.json"]))
        == WorkloadSettings(secrets_dir=tmp_path / "api").credentials("orders", "reader").model_dump()
    )


def strategic(cluster: Any, kind: Any, namespace: str, name: str, patch: Document) -> None:
    """As `kubectl edit` would: by another manager, without apply."""
    root = "/apis/" if "/" in kind.api_version else "/api/"
    path = f"{root}{kind.api_version}/namespaces/{namespace}/{kind.plural}/{name}"
    content = "application/strategic-merge-patch+json"
    cluster.api._call("PATCH", path, body=patch, query={"fieldManager": "somebody"}, content=content)


def in_container(name: str, **members: Any) -> Document:
    return {"spec": {"template": {"spec": {"containers": [{"name": name, **members}]}}}}


EDITS: dict[str, tuple[Any, str, Document]] = {
    "a container is added": (
        DEPLOYMENT,
        "orders-processor",
        {"spec": {"template": {"spec": {"containers": [{"name": "spy", "image": "spy:1"}]}}}},
    ),
    "an environment variable is added": (
        DEPLOYMENT,
        "orders-processor",
        in_container("processor", env=[{"name": "EVIL", "value": "1"}]),
    ),
    "a port is added": (
        DEPLOYMENT,
        "tidemill-ingest",
        in_container("ingest", ports=[{"name": "more", "containerPort": 9999}]),
    ),
    "the image is changed": (DEPLOYMENT, "tidemill-api", in_container("api", image="other:1")),
    "replicas are changed": (DEPLOYMENT, "orders-processor", {"spec": {"replicas": 5}}),
    "a node selector is added": (
        DEPLOYMENT,
        "orders-processor",
        {"spec": {"template": {"spec": {"nodeSelector": {"disk": "ssd"}}}}},
    ),
    "a Service gets a port": (
        SERVICE,
        "orders-api",
        {"spec": {"ports": [{"name": "x", "port": 9, "protocol": "TCP"}]}},
    ),
    "a Service leads elsewhere": (SERVICE, "orders-api", {"spec": {"selector": {"more": "x"}}}),
    "a label is taken away": (
        DEPLOYMENT,
        "orders-processor",
        {"metadata": {"labels": {"tidemill.dev/owner-uid": None}}},
    ),
    "owners are taken away": (DEPLOYMENT, "orders-processor", {"metadata": {"ownerReferences": None}}),
    "a file is added to the shared configs": (KINDS["ConfigMap"], "tidemill-pipelines", {"data": {"evil.json": "{}"}}),
    "a config is changed": (KINDS["ConfigMap"], "orders-config", {"data": {"orders.json": "{}"}}),
    "a budget is loosened": (KINDS["PodDisruptionBudget"], "tidemill-api", {"spec": {"maxUnavailable": 9}}),
    "a policy is opened": (
        KINDS["NetworkPolicy"],
        "orders-processor",
        {"spec": {"egress": [{}]}},
    ),
}


def content(child: Document) -> Document:
    """What was wanted of an object, without what the server notes about it."""
    metadata = child["metadata"]
    kept = {name: metadata.get(name) for name in ("labels", "ownerReferences")}
    return {"metadata": kept, "spec": child.get("spec"), "data": child.get("data")}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.fault("child-edited", "as it was after a pass")
def test_what_somebody_edits_is_as_it_was_after_a_pass(
    cluster: Any, passes: Any, orders: Key, namespace: str, edit: str
) -> None:
    kind, name, patch = EDITS[edit]
    if name == "tidemill-pipelines":
        name = next(found for _, found in cluster.children(namespace) if found.startswith(name))
    before = cluster.child(namespace, kind.kind, name)
    strategic(cluster, kind, namespace, name, patch)
    assert content(cluster.child(namespace, kind.kind, name)) != content(before), "the edit does nothing"
    passes.until(orders, Result.SETTLED)
    after = cluster.child(namespace, kind.kind, name)
    assert content(after) == content(before)
    assert after["metadata"]["uid"] == before["metadata"]["uid"], "it was changed, not made anew"
    managers = {entry["manager"] for entry in after["metadata"]["managedFields"] if "f:spec" in entry["fieldsV1"]}
    assert "somebody" not in managers
    passes.until(orders, Result.SETTLED)
    passes.api.written.clear()
    passes.until(orders, Result.SETTLED)
    assert passes.api.written == [], "it is repaired once"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("Deployment", "orders-processor"),
        ("Deployment", "tidemill-api"),
        ("Service", "orders-ingest"),
        ("ServiceAccount", "orders-processor"),
        ("ConfigMap", "orders-config"),
        ("PodDisruptionBudget", "orders-processor"),
        ("NetworkPolicy", "orders-processor"),
        ("Secret", "tidemill-api-secrets"),
        ("Secret", "orders-credentials"),
    ],
)
@pytest.mark.fault("child-deleted", "back after a pass")
def test_what_is_deleted_comes_back(
    cluster: Any, passes: Any, orders: Key, namespace: str, kind: str, name: str
) -> None:
    cluster.api.delete(KINDS[kind], namespace, name)
    passes.until(orders, Result.SETTLED)
    assert cluster.child(namespace, kind, name)


def test_a_lost_password_is_replaced_everywhere(cluster: Any, passes: Any, servers: Any, orders: Key) -> None:
    """The new login works, and the processors are started anew with it."""
    namespace = orders.namespace
    before = cluster.child(namespace, "Deployment", "orders-processor")
    cluster.api.delete(SECRET, namespace, "orders-credentials")
    passes.until(orders, Result.SETTLED)
    data = cluster.child(namespace, "Secret", "orders-credentials")["data"]
    at = servers.postgres
    for file in ("writer.json", "reader.json"):
        login = json.loads(base64.b64decode(data[file]))
        psycopg.connect(
            host=at.host, port=at.port, dbname=at.database, user=login["user"], password=login["password"]
        ).close()
    after = cluster.child(namespace, "Deployment", "orders-processor")
    assert after["spec"]["template"]["metadata"]["annotations"] != before["spec"]["template"]["metadata"]["annotations"]


def test_another_pipeline_restarts_nothing_of_the_first(
    cluster: Any, passes: Any, orders: Key, namespace: str, make: Callable[..., Key]
) -> None:
    before = {name: cluster.child(namespace, "Deployment", name) for name in ("tidemill-ingest", "tidemill-api")}
    passes.once(orders)
    (pod,) = cluster.api.list(KINDS["Pod"], namespace, selector="tidemill.dev/workload=tidemill-api")
    shown = pod["metadata"]["annotations"]["tidemill.dev/files"]
    clicks = make("clicks", namespace)
    passes.until(clicks, Result.SETTLED)
    for name, old in before.items():
        new = cluster.child(namespace, "Deployment", name)
        assert new["spec"] == old["spec"]
        assert {owner["uid"] for owner in new["metadata"]["ownerReferences"]} == {orders.uid, clicks.uid}
    assert set(cluster.child(namespace, "Secret", "tidemill-ingest-secrets")["data"]) == {
        "orders.api-keys.json",
        "clicks.api-keys.json",
    }
    selector = "tidemill.dev/workload=tidemill-api"
    (pod,) = cluster.api.list(KINDS["Pod"], namespace, selector=selector)
    assert pod["metadata"]["annotations"]["tidemill.dev/files"] != shown, "its node is told to renew its files"
    versions = cluster.versions(namespace)
    passes.once(orders)
    assert {name: versions[name] for name in versions if name[0] != PIPELINE.kind} == {
        name: version for name, version in cluster.versions(namespace).items() if name[0] != PIPELINE.kind
    }, "a pass of the first changes nothing either"


def test_what_is_shared_stays_for_the_others_and_goes_with_the_last(
    cluster: Any, passes: Any, orders: Key, namespace: str, make: Callable[..., Key], eventually: Any
) -> None:
    clicks = make("clicks", namespace)
    passes.until(clicks, Result.SETTLED)
    cluster.api.delete(PIPELINE, namespace, "orders")
    passes.until(orders, Result.GONE)
    assert cluster.child(namespace, "Deployment", "tidemill-api")
    assert set(cluster.child(namespace, "Secret", "tidemill-ingest-secrets")["data"]) == {"clicks.api-keys.json"}
    configs = [item for (_, name), item in cluster.children(namespace).items() if name.startswith("tidemill-pipelines")]
    assert [file for item in configs for file in item["data"]] == ["clicks.json"]
    cluster.api.delete(PIPELINE, namespace, "clicks")
    passes.until(clicks, Result.GONE)
    eventually(lambda: cluster.children(namespace) == {}, what="nothing is left")


def test_what_the_spec_asks_for_no_more_is_taken_away(cluster: Any, passes: Any, orders: Key, namespace: str) -> None:
    cluster.patch(orders, spec={"api": {"enabled": False}})
    passes.until(orders, Result.SETTLED)
    assert ("Service", "orders-api") not in cluster.children(namespace)
    assert ("Deployment", "tidemill-api") not in cluster.children(namespace)
    assert ("Secret", "tidemill-api-secrets") not in cluster.children(namespace)
    assert set(cluster.get(orders)["status"]["endpoints"]) == {"ingest"}
    cluster.patch(orders, spec={"api": {"enabled": True, "dedicated": True}})
    passes.until(orders, Result.SETTLED)
    assert ("Deployment", "orders-api") in cluster.children(namespace)
    assert ("Deployment", "tidemill-api") not in cluster.children(namespace)


def test_a_changed_spec_rolls_out_while_what_runs_serves(
    cluster: Any, passes: Any, orders: Key, namespace: str
) -> None:
    cluster.patch(orders, spec={"processor": {"replicas": 2}})
    assert passes.once(orders) is Result.WAITING
    assert cluster.condition(orders, "ProcessorsReady") == ("True", "Waiting")
    assert cluster.condition(orders, "Ready") == ("True", "Applied")
    assert cluster.condition(orders, "Progressing") == ("True", "Waiting")
    passes.until(orders, Result.SETTLED)
    assert cluster.condition(orders, "Progressing") == ("False", "Applied")
    assert cluster.child(namespace, "Deployment", "orders-processor")["status"]["readyReplicas"] == 2
    assert cluster.get(orders)["status"]["observedGeneration"] == 2


def test_suspended_processors_end_and_the_rest_stays(cluster: Any, passes: Any, orders: Key, namespace: str) -> None:
    cluster.patch(orders, spec={"suspend": True})
    passes.until(orders, Result.SETTLED)
    assert cluster.child(namespace, "Deployment", "orders-processor")["spec"]["replicas"] == 0
    assert cluster.child(namespace, "Deployment", "tidemill-api")["spec"]["replicas"] == 1
    assert cluster.condition(orders, "Suspended")[0] == "True"


def test_replicas_are_handed_over_to_an_autoscaler_and_taken_back(
    cluster: Any, passes: Any, orders: Key, namespace: str
) -> None:
    """The number does not fall to one when we stop saying it, and what the autoscaler says stays."""
    cluster.patch(orders, spec={"processor": {"replicas": 2}})
    passes.until(orders, Result.SETTLED)
    cluster.patch(orders, spec={"processor": {"scaling": {"mode": "external"}}})
    passes.until(orders, Result.SETTLED)
    assert cluster.child(namespace, "Deployment", "orders-processor")["spec"]["replicas"] == 2
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/orders-processor/scale"
    content = "application/merge-patch+json"
    cluster.api._call("PATCH", path, body={"spec": {"replicas": 4}}, query={"fieldManager": "hpa"}, content=content)
    passes.until(orders, Result.SETTLED)
    assert cluster.child(namespace, "Deployment", "orders-processor")["spec"]["replicas"] == 4
    cluster.patch(orders, spec={"processor": {"scaling": None, "replicas": 2}})
    passes.until(orders, Result.SETTLED)
    assert cluster.child(namespace, "Deployment", "orders-processor")["spec"]["replicas"] == 2


def test_a_paused_resource_is_left_alone(cluster: Any, passes: Any, orders: Key, namespace: str) -> None:
    cluster.patch(orders, metadata={"annotations": {"tidemill.dev/paused": "true"}})
    cluster.api.delete(DEPLOYMENT, namespace, "orders-processor")
    assert passes.once(orders) is Result.SETTLED
    assert cluster.child(namespace, "Deployment", "orders-processor") == {}
    assert cluster.condition(orders, "ReconciliationPaused")[0] == "True"
    assert cluster.condition(orders, "ProcessorsReady")[0] == cluster.condition(orders, "Ready")[0] == "False"
    cluster.patch(orders, metadata={"annotations": {"tidemill.dev/paused": None}})
    passes.until(orders, Result.SETTLED)
    assert cluster.child(namespace, "Deployment", "orders-processor")
    assert cluster.condition(orders, "ReconciliationPaused")[0] == ""


def test_a_foreign_object_in_the_way_is_told_and_left_alone(
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


def test_retained_data_stay_when_the_resource_goes(
    cluster: Any, passes: Any, data: Any, orders: Key, namespace: str, eventually: Any
) -> None:
    cluster.api.delete(PIPELINE, namespace, "orders")
    passes.until(orders, Result.GONE)
    eventually(lambda: cluster.children(namespace) == {}, what="the cluster's objects are gone")
    assert len(data.topics(namespace)) == 3
    assert data.has_schema(namespace, "orders")


def test_data_go_with_the_resource_if_it_says_so(
    cluster: Any, passes: Any, data: Any, namespace: str, make: Callable[..., Key], eventually: Any
) -> None:
    key = make("orders", namespace, reclaimPolicy="Delete")
    passes.until(key, Result.SETTLED)
    assert cluster.get(key)["metadata"]["finalizers"] == [FINALIZER]
    cluster.api.delete(PIPELINE, namespace, "orders")
    passes.until(key, Result.GONE)
    assert data.topics(namespace) == set()
    assert not data.has_schema(namespace, "orders")
    eventually(lambda: cluster.children(namespace) == {}, what="the cluster's objects are gone")


def test_the_finalizer_is_there_only_while_data_are_to_be_deleted(cluster: Any, passes: Any, orders: Key) -> None:
    for policy, expected in (("Delete", [FINALIZER]), ("Retain", [])):
        cluster.patch(orders, spec={"reclaimPolicy": policy})
        passes.until(orders, Result.SETTLED)
        assert cluster.get(orders)["metadata"].get("finalizers", []) == expected


def test_events_tell_what_has_changed(cluster: Any, passes: Any, orders: Key, namespace: str) -> None:
    found = [
        (event["type"], event["reason"], event["message"])
        for event in cluster.api.list(EVENT, namespace)
        if event["involvedObject"].get("uid") == orders.uid
    ]
    assert ("Normal", "Applied", "Ready is True") in found
    count = len(found)
    passes.once(orders)
    assert len([e for e in cluster.api.list(EVENT, namespace) if e["involvedObject"].get("uid") == orders.uid]) == count
