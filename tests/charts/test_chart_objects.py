"""Roles, webhooks, network policies, the CRD, brokers and monitoring that the charts render."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from rendered.charts import CI, DEV, PROD, ROOT, of_kind, operator_container
from tidemill_operator.cluster import rbac

pytestmark = pytest.mark.kubernetes


def test_listed_namespaces_get_roles_and_no_webhook(render: Any) -> None:
    """No right beyond these namespaces."""
    found = render("tidemill", "watch.namespaces={shop,analytics}", "rbac.aggregate=false", files=[DEV])
    roles = {(m["metadata"]["namespace"], m["metadata"]["name"]) for m in of_kind(found, "Role")}
    name = "tidemill-system-tidemill"
    assert roles == {("shop", name), ("analytics", name), ("tidemill-system", "tidemill")}
    assert (
        of_kind(found, "ClusterRole")
        + of_kind(found, "ValidatingWebhookConfiguration")
        + of_kind(found, "MutatingWebhookConfiguration")
        == []
    )
    assert {e["name"]: e.get("value") for e in operator_container(found)["env"]}["TIDEMILL_WEBHOOK_PORT"] == "0"


@pytest.mark.parametrize("namespaces", ["", "shop"])
def test_the_operator_gets_the_rights_that_it_needs_and_no_more(namespaces: str, render: Any) -> None:
    """The operator's own list, which its tests run with, is what the chart grants."""
    settings = ["rbac.aggregate=false", "uninstall.enabled=false"]
    settings += [f"watch.namespaces={{{namespaces}}}"] if namespaces else []
    found = render("tidemill", *settings, files=[DEV])
    granted = {
        (m["kind"], m["metadata"].get("namespace")): m["rules"] for m in found if m["kind"] in ("Role", "ClusterRole")
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
    """And only if connectors are such resources."""
    settings = ["connect.strimzi.cluster=my-connect", "connect.strimzi.namespace=kafka"]
    found = render("tidemill", *settings, files=[DEV])
    (role,) = [m for m in of_kind(found, "Role") if m["metadata"]["namespace"] == "kafka"]
    assert role["rules"] == rbac.strimzi_rules()
    (binding,) = [m for m in of_kind(found, "RoleBinding") if m["metadata"]["namespace"] == "kafka"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert {e["name"]: e.get("value") for e in operator_container(found)["env"]}[
        "TIDEMILL_CONNECT_STRIMZI"
    ] == "kafka/my-connect"
    assert "kafka.strimzi.io" not in str(render("tidemill", files=[DEV]))


def test_the_operator_may_reach_its_connect_workers(render: Any) -> None:
    found = render("tidemill", "connect.image=connect:1", "connect.egressPorts={5432,3306}", files=[DEV])
    env = {e["name"]: e.get("value") for e in operator_container(found)["env"]}
    assert (env["TIDEMILL_CONNECT_IMAGE"], env["TIDEMILL_CONNECT_EGRESS_PORTS"]) == ("connect:1", "5432,3306")
    assert "TIDEMILL_CONNECT_SECRETS" not in env
    policies = [m for m in of_kind(found, "NetworkPolicy") if m["metadata"]["name"] == "tidemill"]
    ports = [port["port"] for policy in policies for rule in policy["spec"]["egress"] for port in rule["ports"]]
    assert 8083 in ports


def test_the_webhook_stops_nobody(render: Any) -> None:
    """It may be away, and what is being deleted is not its business."""
    for kind in ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"):
        (webhook,) = of_kind(render("tidemill", files=[DEV]), kind)[0]["webhooks"]
        assert webhook["failurePolicy"] == "Ignore"
        assert webhook["matchConditions"][0]["expression"] == "!has(object.metadata.deletionTimestamp)"


def test_two_operators_get_a_disruption_budget(render: Any) -> None:
    """With one it would block a drain, or do nothing."""
    assert [m["spec"]["maxUnavailable"] for m in of_kind(render("tidemill", files=[CI]), "PodDisruptionBudget")] == [1]
    assert of_kind(render("tidemill", files=[DEV]), "PodDisruptionBudget") == []


def test_the_crd_is_the_generated_one_and_is_kept(render: Any) -> None:
    """Removing a release must not remove everybody's pipelines."""
    (crd,) = of_kind(render("tidemill", files=[DEV]), "CustomResourceDefinition")
    assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert crd == yaml.safe_load((ROOT / "crds" / "analyticspipelines.yaml").read_text())


def test_the_operator_reaches_kafka_connect(render: Any) -> None:
    """Its variables are there only with a URL, whose port is open to the operator."""
    found = render("tidemill", "connect.url=http://connect:8083", files=[CI])
    told = {entry["name"]: entry.get("value") for entry in operator_container(found)["env"]}
    assert told["TIDEMILL_CONNECT_URL"] == "http://connect:8083"
    assert told["TIDEMILL_CONNECT_SECRETS"] == "${secrets:{namespace}/{name}:{key}}"
    ports = [
        port["port"] for m in of_kind(found, "NetworkPolicy") for rule in m["spec"]["egress"] for port in rule["ports"]
    ]
    assert 8083 in ports
    without = render("tidemill", files=[CI])
    assert not any(entry["name"].startswith("TIDEMILL_CONNECT") for entry in operator_container(without)["env"])


def test_brokers_form_one_quorum(render: Any) -> None:
    """Every broker is a voter, and topics survive the loss of one."""
    found = render("dev-stack")
    config = next(m for m in of_kind(found, "ConfigMap") if m["metadata"]["name"] == "dev-stack-kafka")["data"]
    lines = dict(line.split("=", 1) for line in config["common.properties"].splitlines())
    assert len(lines["controller.quorum.voters"].split(",")) == 3
    assert (lines["default.replication.factor"], lines["min.insync.replicas"]) == ("3", "2")


def test_monitoring_is_optional_and_complete(render: Any) -> None:
    """All of it in production, none where the Prometheus operator is not."""
    kinds = [manifest["kind"] for manifest in render("tidemill", files=[PROD])]
    assert {"ServiceMonitor", "PodMonitor", "PrometheusRule"} <= set(kinds)
    assert not {"ServiceMonitor", "PodMonitor", "PrometheusRule"} & {m["kind"] for m in render("tidemill", files=[DEV])}
    found = {m["metadata"]["name"]: m for m in of_kind(render("tidemill", files=[PROD]), "ConfigMap")}
    dashboards = found["tidemill-dashboards"]["data"]
    assert {json.loads(text)["uid"] + ".json" for text in dashboards.values()} == set(dashboards)


@pytest.mark.parametrize("url", ["https://tidemill.dev/runbooks/", "https://runbooks.example/"])
def test_alerts_name_their_runbook_where_it_is_read(render: Any, url: str) -> None:
    """The address is the installation's own."""
    settings = ["metrics.prometheusRule.enabled=true"]
    settings += [] if "tidemill" in url else [f"metrics.prometheusRule.runbookUrl={url}"]
    (rule,) = of_kind(render("tidemill", *settings, files=[DEV]), "PrometheusRule")
    alerts = [alert for group in rule["spec"]["groups"] for alert in group["rules"]]
    assert {a["annotations"]["runbook_url"] for a in alerts} == {f"{url}{a['alert'].lower()}.md" for a in alerts}
