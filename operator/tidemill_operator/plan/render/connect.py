"""Render the Connect workers of a namespace. All connectors of the namespace run on these workers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tidemill_operator.cluster_settings import ConnectWorkers, Placement
from tidemill_operator.plan.connect.workers import (
    ADDRESS_VARIABLE,
    CONFIG_DIR,
    LOGGING,
    NAME,
    PORT,
    PROPERTIES,
    SECRETS_DIR,
)
from tidemill_operator.plan.model import Probe, Workload
from tidemill_operator.plan.render import object_metadata, objects
from tidemill_operator.plan.render.object_metadata import Manifest, OwnerReference
from tidemill_operator.plan.render.pods import CONTAINER_SECURITY, SECRET_MODE, probe, selector, template

COMPONENT = "connect"
WORKER, SECRETS = f"{NAME}-worker", object_metadata.shared_secret("connect")
"""The Secrets with the worker's configuration, and with the values of connectors' secrets."""
_JARS = "/opt/kafka/libs/*"
# A worker answers `/` as soon as its server runs. A worker answers `/health` only after it has read its topics once.
_LIVE, _HEALTHY = Probe("/", "http", 10), Probe("/health", "http")
_START_SECONDS, _START_PERIOD = 300, 2
_JVM = ("-XX:MaxRAMPercentage=60", "-XX:+UseSerialGC", "-Djava.awt.headless=true")


def connect_workload(namespace: str, workers: ConnectWorkers) -> Workload:
    """Return the `Workload` that describes a namespace's Connect workers."""
    return Workload(
        name=NAME,
        namespace=namespace,
        component="connect",
        pipeline=None,
        module="",
        replicas=workers.replicas,
        ports={"http": PORT},
    )


def connect_manifests(
    namespace: str, *, workers: ConnectWorkers, placement: Placement, owners: Iterable[OwnerReference], revision: str
) -> tuple[Manifest, ...]:
    """Return the manifests in the order of their creation, without the Secrets."""
    workload = connect_workload(namespace, workers)
    references = list(owners)

    def metadata() -> Manifest:
        return object_metadata.shared_metadata(NAME, namespace, component=COMPONENT, owners=references)

    supporting = [objects.service_account(metadata()), objects.disruption_budget(workload, metadata())]
    if placement.network_policies:
        supporting.append(_network_policy(workload, metadata(), workers, placement))
    pods = template(
        workload,
        placement,
        container=_container(workers, placement),
        volumes=_volumes(),
        annotations={"tidemill.dev/config": revision},
    )
    deployment = objects.deployment_of(workload, metadata(), pods, replicas=workers.replicas)
    return *supporting, objects.service(workload, metadata(), PORT), deployment


def _container(workers: ConnectWorkers, placement: Placement) -> dict[str, Any]:
    logging = f"-Dlog4j2.configurationFile=file:{CONFIG_DIR}/{LOGGING}"
    program = ["java", *_JVM, logging, "-cp", _JARS, "org.apache.kafka.connect.cli.ConnectDistributed"]
    address = {"name": ADDRESS_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    return {
        "name": COMPONENT,
        "image": workers.image,
        "imagePullPolicy": placement.pull_policy,
        "command": [*program, f"{CONFIG_DIR}/{PROPERTIES}"],
        "env": [address],
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "resources": {
            "requests": {"cpu": "100m", "memory": workers.memory},
            "limits": {"memory": workers.memory},
        },
        "securityContext": CONTAINER_SECURITY,
        "startupProbe": probe(_HEALTHY, period=_START_PERIOD, failures=_START_SECONDS // _START_PERIOD),
        "readinessProbe": probe(_HEALTHY, failures=2),
        "livenessProbe": probe(_LIVE, failures=6),
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
            {"name": "secrets", "mountPath": SECRETS_DIR, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - an emptyDir of the pod
        ],
    }


def _volumes() -> list[dict[str, Any]]:
    return [
        {"name": "config", "secret": {"secretName": WORKER, "defaultMode": SECRET_MODE}},
        # The Secret is optional, because some connectors need no secrets.
        {"name": "secrets", "secret": {"secretName": SECRETS, "optional": True, "defaultMode": SECRET_MODE}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}},
    ]


def _network_policy(workload: Workload, metadata: Manifest, workers: ConnectWorkers, placement: Placement) -> Manifest:
    """Return the NetworkPolicy, which lets only the operator's namespace and the workers use the REST interface."""
    pods = {"matchLabels": selector(workload)}
    operator = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": workers.caller_namespace}}}
    rest = [{"port": PORT, "protocol": "TCP"}]
    dns = {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}
    ports = sorted({*placement.egress_ports, *workers.egress_ports})
    servers = {"ports": [{"port": port, "protocol": "TCP"} for port in ports]}
    others = {"ports": rest, "to": [{"podSelector": pods}]}
    spec = {
        "podSelector": pods,
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"ports": rest, "from": [operator, {"podSelector": pods}]}],
        "egress": [dns, others, *([servers] if ports else [])],
    }
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}
