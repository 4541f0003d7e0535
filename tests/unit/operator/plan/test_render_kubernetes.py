"""Tests of the rendered manifests of workloads: pod security, restarts, owners and mounted files."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tidemill_operator.cluster_settings import Exposure, Placement
from tidemill_operator.plan.model import Reference, Workload
from tidemill_operator.plan.render import object_metadata
from tidemill_operator.plan.render.kubernetes import render
from tidemill_operator.plan.render.object_metadata import OwnerReference
from tidemill_operator.plan.render.pods import Revisions, parse_quantity

PLACEMENT = Placement(images={"processor": "p:1", "ingest": "i:1", "api": "a:1"}, egress_ports=(5432, 9092))
ORDERS, CLICKS = OwnerReference("uid-orders", "orders"), OwnerReference("uid-clicks", "clicks")
PROCESSOR = Workload(
    name="orders-processor",
    namespace="shop",
    component="processor",
    pipeline="orders",
    module="tidemill_processor",
    replicas=2,
    configs={"orders.json": "{}"},
    secrets={"orders": ("writer.json",)},
)
INGEST = Workload(
    name="tidemill-ingest",
    namespace="shop",
    component="ingest",
    pipeline=None,
    module="tidemill_ingest",
    replicas=1,
    configs={"orders.json": "{}"},
    secrets={"orders": ("api-keys.json",)},
)
REPLAY = replace(PROCESSOR, name="orders-replay", component="replay", replicas=1, environment={"TIDEMILL_READER": "r"})
OWN_API = replace(INGEST, name="orders-api", component="api", pipeline="orders", secrets={"orders": ("reader.json",)})


def rendered(
    workload: Workload,
    *,
    owner: OwnerReference = ORDERS,
    sharing: tuple[OwnerReference, ...] = (ORDERS,),
    placement: Placement = PLACEMENT,
    revisions: Revisions = Revisions("c", "k"),  # noqa: B008 - frozen
) -> dict[tuple[str, str], dict[str, Any]]:
    objects = render(
        workload, pipeline=owner.name, owner=owner, sharing=sharing, placement=placement, revisions=revisions
    )
    return {(item["kind"], item["metadata"]["name"]): item for item in (*objects.own, *objects.workload)}


def template(workload: Workload, **settings: Any) -> dict[str, Any]:
    return dict(rendered(workload, **settings)["Deployment", workload.name]["spec"]["template"])


@pytest.mark.parametrize("workload", [PROCESSOR, INGEST, OWN_API], ids=lambda workload: workload.name)
def test_pods_meet_the_restricted_pod_security_standard(workload: Workload) -> None:
    spec = template(workload)["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {kind for volume in spec["volumes"] for kind in volume if kind != "name"} <= {
        "configMap",
        "projected",
        "secret",
        "emptyDir",
    }
    assert spec["automountServiceAccountToken"] is False


def test_another_pipeline_does_not_restart_the_shared_pods() -> None:
    """The template of a shared workload is the same for every pipeline and every set of owners."""
    others = replace(INGEST, configs={"clicks.json": "[1]"}, secrets={"clicks": ("api-keys.json",)})
    assert template(INGEST) == template(others, owner=CLICKS, sharing=(ORDERS, CLICKS), revisions=Revisions("x", "k"))


@pytest.mark.parametrize(
    ("change", "workload", "settings"),
    [
        ("another config", replace(PROCESSOR, revision="2"), {}),
        ("another password", PROCESSOR, {"revisions": Revisions("d", "k")}),
        ("other policies", PROCESSOR, {"placement": replace(PLACEMENT, resilience="x: 1")}),
        ("another image", PROCESSOR, {"placement": replace(PLACEMENT, images={"processor": "p:2"})}),
        ("another Redis", PROCESSOR, {"placement": replace(PLACEMENT, connections={"redis-url": "redis://b"})}),
    ],
)
def test_a_change_that_processors_read_at_start_replaces_their_pods(
    change: str, workload: Workload, settings: dict[str, Any]
) -> None:
    """A running processor would not see the change."""
    assert template(PROCESSOR) != template(workload, **settings), change


def test_another_config_file_alone_replaces_no_pods() -> None:
    """Ingest and API read their files again. Processors restart only for another revision."""
    assert template(PROCESSOR) == template(replace(PROCESSOR, configs={"orders.json": "[]"}))
    assert template(OWN_API) == template(replace(OWN_API, configs={"orders.json": "[]"}))


def test_shared_objects_are_owned_by_all_pipelines_and_controlled_by_none() -> None:
    """Shared objects are deleted with the last pipeline, and the pipeline's other objects with the pipeline."""
    objects = rendered(INGEST, sharing=(ORDERS, CLICKS))
    shared = objects["Deployment", "tidemill-ingest"]["metadata"]
    assert [(owner["uid"], owner.get("controller")) for owner in shared["ownerReferences"]] == [
        ("uid-clicks", None),
        ("uid-orders", None),
    ]
    assert shared["labels"][object_metadata.OWNER_UID] == object_metadata.SHARED
    own = objects["Service", "orders-ingest"]["metadata"]
    assert [(owner["uid"], owner["controller"]) for owner in own["ownerReferences"]] == [("uid-orders", True)]
    assert own["labels"][object_metadata.OWNER_UID] == "uid-orders"


def test_a_pipelines_service_leads_to_the_shared_pods() -> None:
    """The Service belongs to the pipeline, and the pods to the namespace."""
    service = rendered(INGEST)["Service", "orders-ingest"]
    pods = template(INGEST)["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= pods.items()
    assert not service["spec"]["selector"].items() <= template(OWN_API)["metadata"]["labels"].items()


def test_a_deployment_that_others_scale_has_no_replicas() -> None:
    """An apply without the number keeps the number that an autoscaler set."""
    left = rendered(replace(PROCESSOR, externally_scaled=True))["Deployment", "orders-processor"]["spec"]
    assert "replicas" not in left
    assert rendered(PROCESSOR)["Deployment", "orders-processor"]["spec"]["replicas"] == 2


def test_only_pods_of_ingest_get_its_limits() -> None:
    """Other limits restart no processor. Both get the address of Redis, which has the keys of retries."""
    placement = replace(
        PLACEMENT, ingest={"TIDEMILL_INGEST_EVENTS_PER_SECOND": "5"}, connections={"redis-url": "redis://r"}
    )
    objects = {}
    for workload in (INGEST, PROCESSOR):
        container = template(workload, placement=placement)["spec"]["containers"][0]
        objects[workload.component] = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert objects["ingest"]["TIDEMILL_INGEST_EVENTS_PER_SECOND"] == "5"
    assert "TIDEMILL_INGEST_EVENTS_PER_SECOND" not in objects["processor"]
    assert all("TIDEMILL_REDIS_URL" in env for env in objects.values())


def test_connections_reach_pods_as_references_only() -> None:
    """No manifest contains a password."""
    placement = replace(PLACEMENT, connections={"redis-url": "redis://:hidden@r", "kafka.json": '{"p": "hidden"}'})
    assert "hidden" not in str(rendered(PROCESSOR, placement=placement))


def test_certificates_of_servers_are_mounted_in_pods() -> None:
    """Each variable names a file of the Secret of connections. Without certificates, no file is mounted."""
    placement = replace(PLACEMENT, connections={"redis-url": "r", "postgres-ca.crt": "PEM", "redis-ca.crt": "PEM"})
    spec = template(PROCESSOR, placement=placement)["spec"]
    (volume,) = (volume for volume in spec["volumes"] if volume["name"] == "connections")
    (mount,) = (mount for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "connections")
    files = [f"{mount['mountPath']}/{item['path']}" for item in volume["secret"]["items"]]
    variables = {entry["name"]: entry.get("value") for entry in spec["containers"][0]["env"]}
    assert files == [variables["TIDEMILL_POSTGRES_CA"], variables["TIDEMILL_REDIS_CA"]]
    without = replace(PLACEMENT, connections={"redis-url": "r"})
    assert "connections" not in [v["name"] for v in template(PROCESSOR, placement=without)["spec"]["volumes"]]


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}}),
        (
            {"requests": {"memory": "4Gi"}},  # above the default limit, which is raised
            {"requests": {"cpu": "100m", "memory": "4Gi"}, "limits": {"memory": "4Gi"}},
        ),
        (
            {"limits": {"cpu": "50m", "memory": "128Mi"}},  # below the default requests, which are lowered
            {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"cpu": "50m", "memory": "128Mi"}},
        ),
    ],
)
def test_given_resources_override_and_adjust_the_defaults(resources: Any, expected: Any) -> None:
    """The API server would refuse a request above its limit."""
    (container,) = template(replace(PROCESSOR, resources=resources))["spec"]["containers"]
    assert container["resources"] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("500m", 0.5), ("2", 2.0), ("0.5", 0.5), ("1Ki", 1024.0), ("1k", 1000.0), ("1.5Gi", 1.5 * 2**30), ("3M", 3e6)],
)
def test_amounts_are_read_as_kubernetes_reads_them(text: str, expected: float) -> None:
    """Amounts that differ only in writing are equal."""
    assert parse_quantity(text) == expected


def test_the_platform_can_disable_network_policies() -> None:
    """A cluster may have other policies."""
    kinds = {kind for kind, _ in rendered(PROCESSOR, placement=replace(PLACEMENT, network_policies=False))}
    assert "NetworkPolicy" not in kinds


def test_an_ingress_is_rendered_only_with_an_exposure() -> None:
    assert ("Ingress", "orders-ingest") not in rendered(INGEST)
    exposure = Exposure("example.com", class_name="nginx", tls_secret="cert", annotations={"a": "b"})
    objects = rendered(INGEST, placement=replace(PLACEMENT, exposure=exposure))
    ingress = objects["Ingress", "orders-ingest"]
    host = "orders-ingest.shop.example.com"
    assert ingress["metadata"]["annotations"] == {"a": "b"}
    assert ingress["metadata"]["ownerReferences"] == objects["Service", "orders-ingest"]["metadata"]["ownerReferences"]
    assert ingress["spec"]["ingressClassName"] == "nginx"
    assert ingress["spec"]["tls"] == [{"hosts": [host], "secretName": "cert"}]
    (rule,) = ingress["spec"]["rules"]
    assert rule["host"] == host
    backend = rule["http"]["paths"][0]["backend"]["service"]
    service = objects["Service", "orders-ingest"]
    assert backend == {"name": "orders-ingest", "port": {"number": service["spec"]["ports"][0]["port"]}}
    assert not any(
        kind == "Ingress" for kind, _ in rendered(PROCESSOR, placement=replace(PLACEMENT, exposure=exposure))
    )


def test_a_replay_is_a_separate_deployment_of_the_processor() -> None:
    """The replay has the image and config of processors. No Service and no scaling of processors counts its pods."""
    objects = rendered(REPLAY)
    kinds = {kind for kind, _ in objects}
    assert kinds == {"ServiceAccount", "PodDisruptionBudget", "NetworkPolicy", "Deployment"}
    (container,) = template(REPLAY)["spec"]["containers"]
    assert container["image"] == "p:1"
    assert {"name": "TIDEMILL_READER", "value": "r"} in container["env"]
    replay_labels, processor_labels = (objects["Deployment", w.name]["spec"]["selector"] for w, objects in (
        (REPLAY, objects), (PROCESSOR, rendered(PROCESSOR)),
    ))  # fmt: skip
    assert replay_labels != processor_labels
    volumes = [template(workload)["spec"]["volumes"] for workload in (REPLAY, PROCESSOR)]
    assert volumes[0] == volumes[1]


def test_the_secret_of_a_schema_registry_is_only_mounted() -> None:
    """Neither the operator nor another workload reads the Secret. Its files change without a restart."""
    workload = replace(PROCESSOR, registry_secret="registry", egress_ports=(8081, 9092))
    objects = rendered(workload)
    pod = objects["Deployment", "orders-processor"]["spec"]["template"]["spec"]
    mounted = {volume["name"]: volume for volume in pod["volumes"]}
    assert mounted["registry"]["secret"] == {"secretName": "registry", "optional": True, "defaultMode": 0o440}
    (container,) = pod["containers"]
    assert {"name": "registry", "mountPath": "/etc/tidemill/registry", "readOnly": True} in container["volumeMounts"]
    assert {"name": "TIDEMILL_REGISTRY_DIR", "value": "/etc/tidemill/registry"} in container["env"]
    _, servers = objects["NetworkPolicy", "orders-processor"]["spec"]["egress"]
    assert [port["port"] for port in servers["ports"]] == [5432, 8081, 9092]
    assert "registry" not in str(template(PROCESSOR))


def test_a_bridge_is_recreated_and_gets_no_login() -> None:
    """Two bridges with one session would end each other's connections, so the former bridge ends first."""
    workload = replace(
        PROCESSOR, name="orders-mqtt", component="mqtt", module="tidemill_ingest.mqtt", is_singleton=True, secrets={},
        mqtt_secret="broker", egress_ports=(8883,),
    )  # fmt: skip
    objects = rendered(workload)
    kinds = {kind for kind, _ in objects}
    assert kinds == {"ServiceAccount", "PodDisruptionBudget", "NetworkPolicy", "Deployment"}
    deployment = objects["Deployment", "orders-mqtt"]["spec"]
    assert deployment["strategy"] == {"type": "Recreate"}
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    assert (container["image"], container["command"]) == ("i:1", ["python", "-m", "tidemill_ingest.mqtt"])
    mounted = {volume["name"]: volume for volume in pod["volumes"]}
    assert mounted["mqtt"]["secret"] == {"secretName": "broker", "optional": True, "defaultMode": 0o440}
    assert "secrets" not in mounted
    assert {mount["name"] for mount in container["volumeMounts"]} == mounted.keys()
    assert {"name": "TIDEMILL_MQTT_DIR", "value": "/etc/tidemill/mqtt"} in container["env"]
    _, servers = objects["NetworkPolicy", "orders-mqtt"]["spec"]["egress"]
    assert [port["port"] for port in servers["ports"]] == [5432, 8883, 9092]


def test_the_secret_of_the_sources_cluster_is_mounted() -> None:
    objects = rendered(replace(PROCESSOR, kafka_secret="crm", egress_ports=(9094,)))
    pod = objects["Deployment", "orders-processor"]["spec"]["template"]["spec"]
    mounted = {volume["name"]: volume for volume in pod["volumes"]}
    assert mounted["source-kafka"]["secret"] == {"secretName": "crm", "optional": True, "defaultMode": 0o440}
    (container,) = pod["containers"]
    path = "/etc/tidemill/source-kafka"
    assert {"name": "source-kafka", "mountPath": path, "readOnly": True} in container["volumeMounts"]
    assert {"name": "TIDEMILL_SOURCE_KAFKA_DIR", "value": path} in container["env"]
    assert "source-kafka" not in str(template(PROCESSOR))


def test_objects_of_lookups_are_mounted_as_folders() -> None:
    """A whole folder is mounted, because a single mounted file would not change with its ConfigMap."""
    references = {"plans": Reference("configMap", "all-plans"), "products": Reference("secret", "shop-db")}
    pod = template(replace(PROCESSOR, lookups=references))["spec"]
    mounted = {volume["name"]: volume for volume in pod["volumes"]}
    assert mounted["lookup-0"]["configMap"] == {"name": "all-plans", "optional": True}
    assert mounted["lookup-1"]["secret"] == {"secretName": "shop-db", "optional": True, "defaultMode": 0o440}
    (container,) = pod["containers"]
    paths = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"] if "subPath" not in mount}
    folders = {"plans": "/etc/tidemill/lookups/plans", "products": "/etc/tidemill/lookups/products"}
    assert (paths["lookup-0"], paths["lookup-1"]) == (folders["plans"], folders["products"])
    (variables,) = (variable["value"] for variable in container["env"] if variable["name"] == "TIDEMILL_LOOKUP_DIRS")
    assert json.loads(variables) == folders
    assert "lookup" not in str(template(PROCESSOR)).lower()
