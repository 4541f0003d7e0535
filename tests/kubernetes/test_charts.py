"""Tests of both charts, and of their removal, on a real API server that enforces Pod Security `restricted`.

No node runs pods. A pod that exists was admitted.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from kube import binaries
from kube.controlplane import ControlPlane
from tidemill_operator.actuators.kubernetes.api import Api, load_configuration
from tidemill_operator.cluster.removal import uninstall
from tidemill_operator.errors import TidemillError
from waiting import eventually

pytestmark = pytest.mark.kubernetes

ROOT = Path(__file__).resolve().parents[2]
HOME, PIPELINES = "charts-home", "charts-pipelines"
CLUSTER_NAME = f"{HOME}-tidemill"
SETTINGS = ("kafka.brokers=kafka:9092", "postgres.existingSecret=postgres", "operator.replicas=2")

Run = Callable[..., str]


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Start a control plane for this module only: the CRD belongs to a Helm release here."""
    if binaries.find() is None:
        pytest.skip(binaries.NOT_BUILT)
    with ControlPlane(tmp_path_factory.mktemp("control-plane"), controllers=True) as started:
        yield started


@pytest.fixture(scope="module")
def run(control_plane: ControlPlane) -> Run:
    """Return a function that runs `kubectl` or `helm` with an administrator's rights and returns the output."""

    def call(program: str, *arguments: str | Path, stdin: str | None = None) -> str:
        command = [str(binaries.FOLDER / program), "--kubeconfig", str(control_plane.kubeconfig), *map(str, arguments)]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


@pytest.fixture(scope="module")
def installed(run: Run) -> Run:
    """Install both charts in a namespace that admits only restricted pods."""
    for name in (HOME, PIPELINES):
        run("kubectl", "create", "namespace", name)
        run("kubectl", "label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    run("helm", "install", "tidemill", ROOT / "charts/tidemill", "--namespace", HOME, *settings)
    run("helm", "install", "dev-stack", ROOT / "charts/dev-stack", "--namespace", HOME)
    return run


def _pods(run: Run) -> list[str]:
    """Return the sorted names of the pods, without those of the job that runs every two minutes."""
    selector = "app.kubernetes.io/component!=reclaim"
    return sorted(
        run("kubectl", "get", "pods", "--namespace", HOME, "--selector", selector, "--output", "name").split()
    )


def _account(run: Run, control_plane: ControlPlane) -> Api:
    """Return a client that has only the rights of the operator's service account."""
    token = run("kubectl", "create", "token", "tidemill", "--namespace", HOME).strip()
    admin = load_configuration({"KUBECONFIG": str(control_plane.kubeconfig)})
    configuration = client.Configuration(host=admin.host)
    configuration.ssl_ca_cert = admin.ssl_ca_cert
    configuration.api_key = {"BearerToken": token}
    configuration.api_key_prefix = {"BearerToken": "Bearer"}
    return Api(configuration)


def _pipeline(name: str, *finalizers: str) -> str:
    document = yaml.safe_load((ROOT / "crds/examples/flights.yaml").read_text())
    document["metadata"] = {"name": name, "namespace": PIPELINES, "finalizers": list(finalizers)}
    return json.dumps(document)


def test_every_pod_is_admitted_as_restricted(installed: Run) -> None:
    """The API server creates each pod of the Deployments and StatefulSets."""
    expected = ["dev-stack-kafka-0", "dev-stack-kafka-1", "dev-stack-kafka-2", "dev-stack-postgres-0"]
    expected += ["dev-stack-prometheus", "dev-stack-redis", "tidemill", "tidemill"]

    def all_created() -> bool:
        names = [name.removeprefix("pod/") for name in _pods(installed)]
        return len(names) == len(expected) and all(
            name.startswith(wanted) for name, wanted in zip(names, expected, strict=True)
        )

    eventually(all_created, what=f"pods {expected}")


def test_an_upgrade_keeps_the_password_and_the_webhooks_certificate(installed: Run) -> None:
    """The values contain neither: the chart draws the password, and the leader writes the certificate."""

    def password() -> str:
        return installed(
            "kubectl", "get", "secret", "dev-stack-postgres", "--namespace", HOME, "--output", "jsonpath={.data.url}"
        )

    patch = [{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": "Q0E="}]
    kinds = ("mutatingwebhookconfiguration", "validatingwebhookconfiguration")
    for kind in kinds:
        installed("kubectl", "patch", kind, CLUSTER_NAME, "--type", "json", "--patch", json.dumps(patch))
    before = password()
    for name in ("dev-stack", "tidemill"):
        installed("helm", "upgrade", name, ROOT / "charts" / name, "--namespace", HOME, "--reuse-values")
    path = "jsonpath={.webhooks[0].clientConfig.caBundle}"
    bundles = [installed("kubectl", "get", kind, CLUSTER_NAME, "--output", path) for kind in kinds]
    assert password() == before != ""
    assert bundles == ["Q0E="] * 2


@pytest.mark.parametrize("role", ["view", "edit"])
def test_the_built_in_roles_grant_rights_to_pipelines(role: str, installed: Run) -> None:
    """`view` may read pipelines, and `edit` may change them. Neither may write their status."""
    account = f"system:serviceaccount:{PIPELINES}:{role}"
    installed(
        "kubectl", "create", "rolebinding", role, "--namespace", PIPELINES, f"--clusterrole={role}", f"--user={account}"
    )

    def may(verb: str, *subresource: str) -> bool:
        question = {"namespace": PIPELINES, "verb": verb, "group": "tidemill.dev", "resource": "analyticspipelines"}
        question |= dict(zip(("subresource",), subresource, strict=False))
        spec = {"user": account, "resourceAttributes": question}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        answer = installed("kubectl", "create", "--filename", "-", "--output", "json", stdin=json.dumps(review))
        return bool(json.loads(answer)["status"]["allowed"])

    eventually(lambda: may("get"), what="the role includes pipelines")
    assert [may(verb) for verb in ("create", "patch", "delete")] == [role == "edit"] * 3
    assert not may("patch", "status")


@pytest.mark.fault("chart-uninstalled-no-nodes", "no finalizer, no webhook, no Lease, Secret or ConfigMap is left")
def test_uninstalling_removes_finalizers_webhooks_and_the_operators_objects(
    installed: Run, control_plane: ControlPlane
) -> None:
    """The removal needs only the operator's rights and keeps finalizers of others. A second run does nothing."""
    installed("kubectl", "create", "--filename", "-", stdin=_pipeline("ours", "tidemill.dev/reclaim"))
    installed("kubectl", "create", "--filename", "-", stdin=_pipeline("both", "tidemill.dev/reclaim", "example.com/x"))
    installed("kubectl", "create", "--filename", "-", stdin=_pipeline("none"))
    installed("kubectl", "delete", "analyticspipeline", "ours", "--namespace", PIPELINES, "--wait=false")
    api = _account(installed, control_plane)
    installation = uninstall.Installation(HOME, "tidemill", CLUSTER_NAME, lease="tidemill", secret="tidemill-webhook")

    assert sorted(uninstall.uninstall(api, installation)) == [f"{PIPELINES}/both", f"{PIPELINES}/ours"]
    names = [name for name in _pods(installed) if name.startswith("pod/tidemill")]
    assert names == []
    output = installed("kubectl", "get", "analyticspipelines", "--namespace", PIPELINES, "--output", "json")
    finalizers = {item["metadata"]["name"]: item["metadata"].get("finalizers") for item in json.loads(output)["items"]}
    assert finalizers == {"both": ["example.com/x"], "none": None}
    kinds = "mutatingwebhookconfigurations,validatingwebhookconfigurations"
    assert CLUSTER_NAME not in installed("kubectl", "get", kinds, "--output", "name")
    objects = installed("kubectl", "get", "leases,secrets,configmaps", "--namespace", HOME, "--output", "name").split()
    assert not {"lease.coordination.k8s.io/tidemill", "secret/tidemill-webhook", "configmap/tidemill-watchdog"} & {
        *objects
    }
    assert uninstall.uninstall(api, installation) == []


def test_uninstalling_fails_and_names_pods_that_do_not_end(installed: Run, control_plane: ControlPlane) -> None:
    """Finalizers are removed only after the operator has ended: a running operator would set them again."""
    labels = "app.kubernetes.io/name=tidemill-operator,app.kubernetes.io/instance=tidemill"
    overrides = {"spec": {"automountServiceAccountToken": False, **_restricted()}}
    installed(
        "kubectl",
        "run",
        "stubborn",
        "--namespace",
        HOME,
        "--image=x",
        "--labels",
        labels,
        "--overrides",
        json.dumps(overrides),
    )
    api = _account(installed, control_plane)
    with pytest.raises(TidemillError, match="stubborn"):
        uninstall.uninstall(api, uninstall.Installation(HOME, "tidemill"), end_seconds=0.5)
    installed("kubectl", "delete", "pod", "stubborn", "--namespace", HOME, "--force", "--grace-period=0")


def _restricted() -> dict[str, Any]:
    context = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    pod = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    return {"securityContext": pod, "containers": [{"name": "stubborn", "image": "x", "securityContext": context}]}


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"TIDEMILL_OPERATOR_DEPLOYMENT": "tidemill"}, "TIDEMILL_OPERATOR_NAMESPACE"),
        ({"TIDEMILL_OPERATOR_NAMESPACE": "x"}, "TIDEMILL_OPERATOR_DEPLOYMENT"),
    ],
)
def test_a_variable_that_is_missing_in_the_environment_is_named(environ: dict[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        uninstall.Installation.from_env(environ)
