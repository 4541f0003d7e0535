"""Render Deployments, Services, Ingresses and other objects, but not pods."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from tidemill_operator.cluster_settings import Exposure, Placement
from tidemill_operator.plan.model import Workload
from tidemill_operator.plan.render.object_metadata import Manifest
from tidemill_operator.plan.render.pods import Revisions, pod_template, selector

_ROLLOUT_SECONDS = 600
_HISTORY = 3


def deployment(
    workload: Workload, metadata: Manifest, placement: Placement, revisions: Revisions, *, replicas: int | None
) -> Manifest:
    """Return the Deployment. If `replicas` is None, an autoscaler sets the number of replicas."""
    return deployment_of(workload, metadata, pod_template(workload, placement, revisions), replicas=replicas)


def deployment_of(
    workload: Workload, metadata: Manifest, template: Mapping[str, Any], *, replicas: int | None
) -> Manifest:
    """Return the Deployment that runs pods of the template."""
    # A new pod must be ready before an old pod ends.
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}}
    spec: dict[str, Any] = {
        "revisionHistoryLimit": _HISTORY,
        "progressDeadlineSeconds": _ROLLOUT_SECONDS,
        "strategy": {"type": "Recreate"} if workload.is_singleton else rolling,
        "selector": {"matchLabels": selector(workload)},
        "template": template,
    }
    if replicas is not None:
        spec["replicas"] = replicas
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


def service(workload: Workload, metadata: Manifest, port: int) -> Manifest:
    """Return a Service for a workload's pods."""
    ports = [{"name": "http", "port": port, "targetPort": "http", "protocol": "TCP"}]
    spec = {"type": "ClusterIP", "selector": selector(workload), "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def ingress(workload: Workload, metadata: Manifest, exposure: Exposure, port: int, *, pipeline: str) -> Manifest:
    """Return the Ingress of a pipeline's ingest or API. Ingest and API have separate hosts."""
    host = f"{pipeline}-{workload.component}.{workload.namespace}.{exposure.domain}"
    backend = {"service": {"name": metadata["name"], "port": {"number": port}}}
    spec: dict[str, Any] = {
        "rules": [{"host": host, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}]
    }
    if exposure.class_name:
        spec["ingressClassName"] = exposure.class_name
    if exposure.tls_secret:
        spec["tls"] = [{"hosts": [host], "secretName": exposure.tls_secret}]
    if exposure.annotations:
        metadata = metadata | {"annotations": dict(sorted(exposure.annotations.items()))}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": metadata, "spec": spec}


def service_account(metadata: Manifest) -> Manifest:
    """Return the service account of a workload, without a token."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata,
        "automountServiceAccountToken": False,
    }


def disruption_budget(workload: Workload, metadata: Manifest) -> Manifest:
    """Return a PodDisruptionBudget that allows one unavailable pod, even if the workload has only one pod."""
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": selector(workload)}}
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata, "spec": spec}


def network_policy(workload: Workload, metadata: Manifest, placement: Placement) -> Manifest:
    """Return a NetworkPolicy that opens the status port only to pods of the same cluster."""
    inbound: list[dict[str, Any]] = [
        {"ports": [{"port": "status", "protocol": "TCP"}], "from": [{"namespaceSelector": {}}]}
    ]
    if "http" in workload.ports:
        inbound.insert(0, {"ports": [{"port": "http", "protocol": "TCP"}]})
    dns = {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}
    egress_ports = sorted({*placement.egress_ports, *workload.egress_ports})
    servers = {"ports": [{"port": port, "protocol": "TCP"} for port in egress_ports]}
    spec = {
        "podSelector": {"matchLabels": selector(workload)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": inbound,
        "egress": [dns, servers] if egress_ports else [dns],
    }
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


def config_map(metadata: Manifest, files: Mapping[str, str]) -> Manifest:
    """Return a ConfigMap."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(sorted(files.items()))}


def secret(metadata: Manifest, files: Mapping[str, str]) -> Manifest:
    """Return a Secret."""
    data = {name: base64.b64encode(text.encode()).decode() for name, text in sorted(files.items())}
    return {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata, "data": data}
