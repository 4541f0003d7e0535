"""Replaces the chart and the nodes for an operator that runs against a control plane.

It creates the operator's account with exactly the rights of `tidemill_operator.cluster.rbac`, and marks each pod as
ready.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import yaml

from kube.controlplane import ControlPlane
from tidemill_operator.actuators.kubernetes.api import KINDS, PIPELINE, POD, Api, Document, Kind, load_configuration
from tidemill_operator.cluster import rbac
from tidemill_operator.errors import TidemillError
from tidemill_operator.plan.render import object_metadata
from tidemill_operator.resource.crd import definition

HOME, ACCOUNT = "tidemill-system", "tidemill-operator"
LEASE, WEBHOOK = "tidemill-operator", "tidemill"
IMAGES = {part: f"registry.example/tidemill-{part}:1" for part in ("processor", "ingest", "api")}
NAMESPACE = Kind("v1", "Namespace", "namespaces", namespaced=False)
CRD = Kind("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions", namespaced=False)
_RBAC = "rbac.authorization.k8s.io/v1"
_FURTHER = (
    NAMESPACE,
    CRD,
    Kind(_RBAC, "ClusterRole", "clusterroles", namespaced=False),
    Kind(_RBAC, "ClusterRoleBinding", "clusterrolebindings", namespaced=False),
    Kind(_RBAC, "Role", "roles"),
    Kind(_RBAC, "RoleBinding", "rolebindings"),
)
_SERVED_SECONDS = 60.0


def install(plane: ControlPlane) -> Api:
    """Create the CRD, and the operator's namespace, account and rights.

    Returns:
        A client with the administrator's rights.

    Raises:
        TimeoutError: The API server does not serve AnalyticsPipelines in time.
    """
    for kind in _FURTHER:
        KINDS[kind.kind] = kind
    api = Api(load_configuration({"KUBECONFIG": str(plane.kubeconfig)}))
    api.apply(definition())
    for document in _installation():
        api.apply(document)
    # The API server serves the resource some time after it has stored the definition.
    deadline = time.monotonic() + _SERVED_SECONDS
    while True:
        try:
            api.list(PIPELINE)
        except TidemillError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"AnalyticsPipelines are not served within {_SERVED_SECONDS:.0f} s: {error}"
                ) from error
            time.sleep(0.1)
        else:
            return api


def _installation() -> Iterator[Document]:
    subject = [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": HOME}]
    yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": HOME}}
    yield {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "namespace": HOME}}
    home = rbac.home_rules(lease=LEASE, webhook_secret="tidemill-webhook")  # noqa: S106 - a name
    wide = [*rbac.pipeline_rules(), *rbac.webhook_rules(WEBHOOK)]
    for scope, metadata, rules in (("Cluster", {}, wide), ("", {"namespace": HOME}, home)):
        named = {"name": ACCOUNT, **metadata}
        yield {"apiVersion": _RBAC, "kind": f"{scope}Role", "metadata": named, "rules": rules}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": f"{scope}Role", "name": ACCOUNT}
        yield {
            "apiVersion": _RBAC,
            "kind": f"{scope}RoleBinding",
            "metadata": named,
            "roleRef": role,
            "subjects": subject,
        }


def account(plane: ControlPlane, api: Api, folder: Path) -> Path:
    """Return a kubeconfig of the operator's account, valid for two hours."""
    path = f"/api/v1/namespaces/{HOME}/serviceaccounts/{ACCOUNT}/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 7200}}
    token = api._call("POST", path, body=request)["status"]["token"]
    document = yaml.safe_load(plane.kubeconfig.read_text())
    document["users"][0]["user"] = {"token": token}
    file = folder / "kubeconfig"
    file.write_text(yaml.safe_dump(document))
    return file


def environment(kubeconfig: Path, servers_of: dict[str, str], *, pod: str, ports: tuple[int, int]) -> dict[str, str]:
    """Return the variables that the chart would set, for an operator that runs as a process.

    Args:
        kubeconfig: The kubeconfig of the operator's account.
        servers_of: The TIDEMILL_ variables with the addresses of Kafka, Postgres and Redis.
        pod: The name that the operator uses as the name of its pod.
        ports: The ports of the operator's status and of its webhook. If the webhook's port is 0, no webhook is served.
    """
    return {
        "KUBECONFIG": str(kubeconfig),
        **servers_of,
        "TIDEMILL_CLUSTER_ID": "test",
        "TIDEMILL_DEFAULT_REPLICATION_FACTOR": "1",
        "TIDEMILL_OPERATOR_NAMESPACE": HOME,
        "TIDEMILL_POD_NAME": pod,
        "TIDEMILL_LEASE_NAME": LEASE,
        "TIDEMILL_WEBHOOK_CONFIGURATION": WEBHOOK,
        "TIDEMILL_STATUS_PORT": str(ports[0]),
        "TIDEMILL_WEBHOOK_PORT": str(ports[1]),
        **{f"TIDEMILL_IMAGE_{part.upper()}": image for part, image in IMAGES.items()},
    }


def run_pods(
    api: Api, stopping: threading.Event, *, interval_seconds: float = 0.2, pending_namespaces: Collection[str] = ()
) -> None:
    """Mark each pod as ready, as a kubelet would, until stopped. Pods in `pending_namespaces` remain pending."""
    ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    while not stopping.wait(interval_seconds):
        try:
            for pod in api.list(POD, selector=f"{object_metadata.MANAGED_BY}={object_metadata.MANAGER}"):
                waits = (
                    pod.get("status", {}).get("phase") != "Running"
                    and pod["metadata"]["namespace"] not in pending_namespaces
                )
                if waits and not pod["metadata"].get("deletionTimestamp"):
                    named = {key: pod["metadata"][key] for key in ("name", "namespace")}
                    body = {"apiVersion": "v1", "kind": "Pod", "metadata": named, "status": ready}
                    api.apply(body, subresource="status", manager="kubelet")
        except TidemillError:
            continue  # The API server is restarting, or the pod was deleted.
