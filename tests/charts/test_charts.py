"""Tests that each chart renders valid and restricted manifests, with every values file and optional part.

Helm renders the charts. No cluster is needed.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from charts.__main__ import undocumented_paths
from kube import binaries
from rendered.charts import CI, DEV, PROD, ROOT, containers, pod_templates

pytestmark = pytest.mark.kubernetes

# Name of the case: chart, values files, settings.
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
    chart, files, settings = CASES[case]
    command = ["lint", "--strict", str(ROOT / "charts" / chart), "--kube-version", binaries.kubernetes_version()]
    command += [part for file in files for part in ("--values", str(file))]
    command += [part for setting in settings for part in ("--set", setting)]
    done = helm(command)
    assert done.returncode == 0, done.stdout + done.stderr


@all_cases
def test_objects_have_distinct_names_and_name_their_namespace(manifests: list[dict[str, Any]]) -> None:
    """Every namespaced object names its namespace, and no two objects have the same kind, namespace and name."""
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
    """Roles list API groups, resources and verbs by name."""
    rules = [
        (manifest["metadata"]["name"], rule)
        for manifest in manifests
        if manifest["kind"] in ("Role", "ClusterRole")
        for rule in manifest["rules"]
    ]
    assert [(name, rule) for name, rule in rules if any("*" in str(part) for part in rule.values())] == []


@all_cases
def test_every_pod_is_restricted(manifests: list[dict[str, Any]]) -> None:
    """Every pod meets Pod Security `restricted`, and its root file system is read-only."""
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
    """Every container requests CPU and memory and limits memory. A container with ports has both probes."""
    for name, container in containers(manifests):
        assert set(container["resources"]["requests"]) >= {"cpu", "memory"}, name
        assert "memory" in container["resources"]["limits"], name
        if "ports" in container:
            assert {"readinessProbe", "livenessProbe"} <= set(container), name


@all_cases
def test_tokens_are_mounted_only_where_the_api_is_called(manifests: list[dict[str, Any]]) -> None:
    """Only the operator, its clean-up Jobs and Prometheus call the Kubernetes API."""
    with_token = {n for n, t in pod_templates(manifests) if t["spec"].get("automountServiceAccountToken", True)}
    assert with_token <= {"tidemill", "tidemill-reclaim", "tidemill-uninstall", "dev-stack-prometheus"}


@pytest.mark.parametrize("chart", ["tidemill", "dev-stack"])
def test_every_value_has_a_description(chart: str) -> None:
    """The chart's README is generated from these descriptions."""
    assert undocumented_paths((ROOT / "charts" / chart / "values.yaml").read_text()) == []


@pytest.mark.parametrize("chart", ["tidemill", "dev-stack"])
def test_the_schema_has_exactly_the_values_of_the_chart(chart: str) -> None:
    """The schema and `values.yaml` have the same top-level members."""
    values = yaml.safe_load((ROOT / "charts" / chart / "values.yaml").read_text())
    schema = json.loads((ROOT / "charts" / chart / "values.schema.json").read_text())
    assert set(schema["properties"]) - {"global"} == set(values)
