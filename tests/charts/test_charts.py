"""Rules that the manifests of both charts hold with every values file and with optional parts on or off."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from charts.__main__ import undocumented
from kube import binaries
from rendered.charts import CI, DEV, PROD, ROOT, containers, pod_templates

pytestmark = pytest.mark.kubernetes

# Chart, values files, settings.
CASES = {
    "tidemill for development": ("tidemill", [DEV], []),
    "tidemill for tests": ("tidemill", [CI], []),
    "tidemill in production": ("tidemill", [PROD], []),
    "tidemill in two namespaces": ("tidemill", [DEV], ["watch.namespaces={shop,analytics}"]),
    "tidemill with Connect workers": ("tidemill", [DEV], ["connect.image=connect:1", "connect.replicas=2"]),
    "tidemill with Strimzi": (
        "tidemill",
        [DEV],
        ["connect.strimzi.cluster=my-connect", "connect.strimzi.namespace=kafka"],
    ),
    "tidemill without anything optional": (
        "tidemill",
        [DEV],
        [
            "rbac.create=false",
            "serviceAccount.create=false",
            "webhook.enabled=false",
            "networkPolicy.enabled=false",
            "uninstall.enabled=false",
            "reclaim.enabled=false",
            "crds.create=false",
            "podDisruptionBudget.enabled=false",
        ],
    ),
    "dev-stack": ("dev-stack", [], []),
    "dev-stack with volumes": ("dev-stack", [], ["storage.size=1Gi", "kafka.replicas=1"]),
}
all_cases = pytest.mark.parametrize("case", CASES)


@pytest.fixture
def manifests(case: str, render: Any) -> list[dict[str, Any]]:
    chart, files, settings = CASES[case]
    return list(render(chart, *settings, files=files))


@pytest.mark.parametrize("case", CASES)
def test_helm_lint_finds_no_fault(case: str, helm: Any) -> None:
    """Helm itself finds no fault."""
    chart, files, settings = CASES[case]
    command = ["lint", "--strict", str(ROOT / "charts" / chart), "--kube-version", binaries.kubernetes_version()]
    command += [part for file in files for part in ("--values", str(file))]
    command += [part for setting in settings for part in ("--set", setting)]
    done = helm(command)
    assert done.returncode == 0, done.stdout + done.stderr


@all_cases
def test_objects_have_distinct_names_and_name_their_namespace(manifests: list[dict[str, Any]]) -> None:
    """Objects of a namespace say which, and no two are the same."""
    cluster_wide = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}
    cluster_wide |= {"MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"}
    missing = [
        m["metadata"]["name"] for m in manifests if m["kind"] not in cluster_wide and "namespace" not in m["metadata"]
    ]
    keys = [(m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]) for m in manifests]
    assert missing == []
    assert sorted(keys, key=str) == sorted(set(keys), key=str)


@all_cases
def test_no_rule_has_a_wildcard(manifests: list[dict[str, Any]]) -> None:
    """A right is named, or it is not given."""
    rules = [
        (manifest["metadata"]["name"], rule)
        for manifest in manifests
        if manifest["kind"] in ("Role", "ClusterRole")
        for rule in manifest["rules"]
    ]
    assert [(name, rule) for name, rule in rules if any("*" in str(part) for part in rule.values())] == []


@all_cases
def test_every_pod_is_restricted(manifests: list[dict[str, Any]]) -> None:
    """Pod Security `restricted`, and a root file system that is read-only besides."""
    for name, template in pod_templates(manifests):
        pod = template["spec"]["securityContext"]
        assert (name, pod["runAsNonRoot"], pod["seccompProfile"]) == (name, True, {"type": "RuntimeDefault"})
        assert pod["runAsUser"] > 0
        assert {"hostNetwork", "hostPID", "hostIPC"} & set(template["spec"]) == set()
        allowed = {"configMap", "emptyDir", "secret", "projected", "persistentVolumeClaim"}
        assert {kind for volume in template["spec"].get("volumes", ()) for kind in volume if kind != "name"} <= allowed
    for name, container in containers(manifests):
        expected = {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert (name, container["securityContext"]) == (name, expected)


@all_cases
def test_every_container_has_resources_and_servers_have_probes(manifests: list[dict[str, Any]]) -> None:
    """Requests of both kinds and a bound on memory; whoever listens is asked."""
    for name, container in containers(manifests):
        assert set(container["resources"]["requests"]) >= {"cpu", "memory"}, name
        assert "memory" in container["resources"]["limits"], name
        if "ports" in container:
            assert {"readinessProbe", "livenessProbe"} <= set(container), name


@all_cases
def test_tokens_are_mounted_only_where_the_api_is_called(manifests: list[dict[str, Any]]) -> None:
    """The operator, who stands in for it, its removal and Prometheus call it."""
    with_token = {n for n, t in pod_templates(manifests) if t["spec"].get("automountServiceAccountToken", True)}
    assert with_token <= {"tidemill", "tidemill-reclaim", "tidemill-uninstall", "dev-stack-prometheus"}


@pytest.mark.parametrize("chart", ["tidemill", "dev-stack"])
def test_every_value_is_described(chart: str) -> None:
    """The README is generated from these descriptions."""
    assert undocumented((ROOT / "charts" / chart / "values.yaml").read_text()) == []


@pytest.mark.parametrize("chart", ["tidemill", "dev-stack"])
def test_every_value_is_in_the_schema(chart: str) -> None:
    """And the schema has none that there is not."""
    values = yaml.safe_load((ROOT / "charts" / chart / "values.yaml").read_text())
    schema = json.loads((ROOT / "charts" / chart / "values.schema.json").read_text())
    assert set(schema["properties"]) - {"global"} == set(values)
