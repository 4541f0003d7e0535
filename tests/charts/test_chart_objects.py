"""Tests of roles, webhooks, network policies, the CRD, brokers and monitoring that Helm renders from the charts."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from rendered.charts import CI, DEV, PROD, ROOT, of_kind, operator_container
from tidemill_operator.cluster import rbac

pytestmark = pytest.mark.kubernetes


def test_an_operator_of_listed_namespaces_has_no_cluster_wide_rights_and_no_webhook(render: Any) -> None:
    """The operator gets one Role in each listed namespace, and one in its own."""
    manifests = render("tidemill", "watch.namespaces={shop,analytics}", "rbac.aggregate=false", files=[DEV])
    roles = {(m["metadata"]["namespace"], m["metadata"]["name"]) for m in of_kind(manifests, "Role")}
    name = "tidemill-system-tidemill"
    assert roles == {("shop", name), ("analytics", name), ("tidemill-system", "tidemill")}
    assert (
        of_kind(manifests, "ClusterRole")
        + of_kind(manifests, "ValidatingWebhookConfiguration")
        + of_kind(manifests, "MutatingWebhookConfiguration")
        == []
    )
    assert {e["name"]: e.get("value") for e in operator_container(manifests)["env"]}["TIDEMILL_WEBHOOK_PORT"] == "0"


@pytest.mark.parametrize("namespaces", ["", "shop"])
def test_the_operator_gets_the_rights_that_it_needs_and_no_more(namespaces: str, render: Any) -> None:
    """The chart grants exactly the rules in `rbac`, with which the operator's tests run."""
    settings = ["rbac.aggregate=false", "uninstall.enabled=false"]
    settings += [f"watch.namespaces={{{namespaces}}}"] if namespaces else []
    manifests = render("tidemill", *settings, files=[DEV])
    granted = {
        (m["kind"], m["metadata"].get("namespace")): m["rules"]
        for m in manifests
        if m["kind"] in ("Role", "ClusterRole")
    }
    cluster_name = "tidemill-system-tidemill"
    home = rbac.home_rules(lease="tidemill", webhook_secret="tidemill-webhook")
    if namespaces:
        expected = {("Role", "shop"): rbac.pipeline_rules(), ("Role", "tidemill-system"): home}
    else:
        wide = [*rbac.pipeline_rules(), *rbac.webhook_rules(cluster_name)]
        expected = {("ClusterRole", None): wide, ("Role", "tidemill-system"): home}
    assert granted == expected


def test_strimzis_resources_may_be_changed_in_the_namespace_of_the_cluster_only(render: Any) -> None:
    """Without `connect.strimzi`, the chart grants no right on Strimzi's resources."""
    settings = ["connect.strimzi.cluster=my-connect", "connect.strimzi.namespace=kafka"]
    manifests = render("tidemill", *settings, files=[DEV])
    (role,) = [m for m in of_kind(manifests, "Role") if m["metadata"]["namespace"] == "kafka"]
    assert role["rules"] == rbac.strimzi_rules()
    (binding,) = [m for m in of_kind(manifests, "RoleBinding") if m["metadata"]["namespace"] == "kafka"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert {e["name"]: e.get("value") for e in operator_container(manifests)["env"]}[
        "TIDEMILL_CONNECT_STRIMZI"
    ] == "kafka/my-connect"
    assert "kafka.strimzi.io" not in str(render("tidemill", files=[DEV]))


def test_the_operator_can_reach_the_connect_workers_that_it_runs(render: Any) -> None:
    manifests = render("tidemill", "connect.image=connect:1", "connect.egressPorts={5432,3306}", files=[DEV])
    env = {e["name"]: e.get("value") for e in operator_container(manifests)["env"]}
    assert (env["TIDEMILL_CONNECT_IMAGE"], env["TIDEMILL_CONNECT_EGRESS_PORTS"]) == ("connect:1", "5432,3306")
    assert "TIDEMILL_CONNECT_SECRETS" not in env
    policies = [m for m in of_kind(manifests, "NetworkPolicy") if m["metadata"]["name"] == "tidemill"]
    ports = [port["port"] for policy in policies for rule in policy["spec"]["egress"] for port in rule["ports"]]
    assert 8083 in ports


def test_a_webhook_that_does_not_answer_blocks_no_request(render: Any) -> None:
    """Kubernetes ignores failures of the webhooks, and does not call them for objects in deletion."""
    for kind in ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"):
        (webhook,) = of_kind(render("tidemill", files=[DEV]), kind)[0]["webhooks"]
        assert webhook["failurePolicy"] == "Ignore"
        assert webhook["matchConditions"][0]["expression"] == "!has(object.metadata.deletionTimestamp)"


def test_two_operators_get_a_disruption_budget(render: Any) -> None:
    """A single operator gets no budget, because a budget would block the drain of its node."""
    assert [m["spec"]["maxUnavailable"] for m in of_kind(render("tidemill", files=[CI]), "PodDisruptionBudget")] == [1]
    assert of_kind(render("tidemill", files=[DEV]), "PodDisruptionBudget") == []


def test_the_crd_is_the_generated_file_and_survives_helm_uninstall(render: Any) -> None:
    """Without `resource-policy: keep`, removal of a release would delete all pipelines of the cluster."""
    (crd,) = of_kind(render("tidemill", files=[DEV]), "CustomResourceDefinition")
    assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert crd == yaml.safe_load((ROOT / "crds" / "analyticspipelines.yaml").read_text())


def test_the_operator_can_reach_the_kafka_connect_of_a_url(render: Any) -> None:
    """The chart sets the variables of Kafka Connect only with a URL, and opens the port of the URL."""
    manifests = render("tidemill", "connect.url=http://connect:8083", files=[CI])
    variables = {entry["name"]: entry.get("value") for entry in operator_container(manifests)["env"]}
    assert variables["TIDEMILL_CONNECT_URL"] == "http://connect:8083"
    assert variables["TIDEMILL_CONNECT_SECRETS"] == "${secrets:{namespace}/{name}:{key}}"
    ports = [
        port["port"]
        for m in of_kind(manifests, "NetworkPolicy")
        for rule in m["spec"]["egress"]
        for port in rule["ports"]
    ]
    assert 8083 in ports
    without = render("tidemill", files=[CI])
    assert not any(entry["name"].startswith("TIDEMILL_CONNECT") for entry in operator_container(without)["env"])


def test_brokers_form_one_quorum(render: Any) -> None:
    """Every broker is a voter, and topics survive the loss of one broker."""
    manifests = render("dev-stack")
    config = next(m for m in of_kind(manifests, "ConfigMap") if m["metadata"]["name"] == "dev-stack-kafka")["data"]
    lines = dict(line.split("=", 1) for line in config["common.properties"].splitlines())
    assert len(lines["controller.quorum.voters"].split(",")) == 3
    assert (lines["default.replication.factor"], lines["min.insync.replicas"]) == ("3", "2")


def test_production_values_render_all_monitoring_and_development_values_none(render: Any) -> None:
    """A cluster without the Prometheus operator lacks the kinds that monitoring needs."""
    kinds = [manifest["kind"] for manifest in render("tidemill", files=[PROD])]
    assert {"ServiceMonitor", "PodMonitor", "PrometheusRule"} <= set(kinds)
    assert not {"ServiceMonitor", "PodMonitor", "PrometheusRule"} & {m["kind"] for m in render("tidemill", files=[DEV])}
    config_maps = {m["metadata"]["name"]: m for m in of_kind(render("tidemill", files=[PROD]), "ConfigMap")}
    dashboards = config_maps["tidemill-dashboards"]["data"]
    assert {json.loads(text)["uid"] + ".json" for text in dashboards.values()} == set(dashboards)


@pytest.mark.parametrize("url", ["https://tidemill.dev/runbooks/", "https://runbooks.example/"])
def test_each_alert_has_the_address_of_its_runbook(render: Any, url: str) -> None:
    """An installation can set the address below which its runbooks are."""
    settings = ["metrics.prometheusRule.enabled=true"]
    settings += [] if "tidemill" in url else [f"metrics.prometheusRule.runbookUrl={url}"]
    (rule,) = of_kind(render("tidemill", *settings, files=[DEV]), "PrometheusRule")
    alerts = [alert for group in rule["spec"]["groups"] for alert in group["rules"]]
    assert {a["annotations"]["runbook_url"] for a in alerts} == {f"{url}{a['alert'].lower()}.md" for a in alerts}
