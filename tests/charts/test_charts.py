"""What the charts render to: valid with every values file, without wildcards, restricted; wrong values are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.__main__ import undocumented
from kube import binaries
from tidemill_chassis.resilience.config import ResilienceConfig
from tidemill_operator.cluster import rbac

pytestmark = pytest.mark.kubernetes

ROOT = Path(__file__).resolve().parents[2]
DEV, CI, PROD = (ROOT / "helm" / name / "values.yaml" for name in ("dev", "ci", "prod"))
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


def _templates(manifests: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for manifest in manifests:
        if manifest["kind"] == "Pod":
            yield manifest["metadata"]["name"], manifest
        elif manifest["kind"] == "CronJob":
            yield manifest["metadata"]["name"], manifest["spec"]["jobTemplate"]["spec"]["template"]
        elif "template" in manifest.get("spec", {}):
            yield manifest["metadata"]["name"], manifest["spec"]["template"]


def _containers(manifests: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, template in _templates(manifests):
        for container in [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]:
            yield f"{name}/{container['name']}", container


def _of(manifests: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def _operator(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    return next(d for d in _of(manifests, "Deployment"))["spec"]["template"]["spec"]["containers"][0]  # type: ignore[no-any-return]


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
    for name, template in _templates(manifests):
        pod = template["spec"]["securityContext"]
        assert (name, pod["runAsNonRoot"], pod["seccompProfile"]) == (name, True, {"type": "RuntimeDefault"})
        assert pod["runAsUser"] > 0
        assert {"hostNetwork", "hostPID", "hostIPC"} & set(template["spec"]) == set()
        allowed = {"configMap", "emptyDir", "secret", "projected", "persistentVolumeClaim"}
        assert {kind for volume in template["spec"].get("volumes", ()) for kind in volume if kind != "name"} <= allowed
    for name, container in _containers(manifests):
        expected = {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert (name, container["securityContext"]) == (name, expected)


@all_cases
def test_every_container_has_resources_and_servers_have_probes(manifests: list[dict[str, Any]]) -> None:
    """Requests of both kinds and a bound on memory; whoever listens is asked."""
    for name, container in _containers(manifests):
        assert set(container["resources"]["requests"]) >= {"cpu", "memory"}, name
        assert "memory" in container["resources"]["limits"], name
        if "ports" in container:
            assert {"readinessProbe", "livenessProbe"} <= set(container), name


@all_cases
def test_tokens_are_mounted_only_where_the_api_is_called(manifests: list[dict[str, Any]]) -> None:
    """The operator, who stands in for it, its removal and Prometheus call it."""
    with_token = {n for n, t in _templates(manifests) if t["spec"].get("automountServiceAccountToken", True)}
    assert with_token <= {"tidemill", "tidemill-reclaim", "tidemill-uninstall", "dev-stack-prometheus"}


@pytest.mark.parametrize("component", ["operator", "ingest", "processor", "api"])
def test_images_can_be_replaced(component: str, render: Any) -> None:
    """Registry, repository, tag and digest, of each."""
    digest = "sha256:" + "0" * 64
    settings = ["image.registry=registry.example.com/platform/", f"image.{component}.repository=ours/{component}"]
    tagged = _images(render("tidemill", *settings, f"image.{component}.tag=v9", "image.tag=v8", files=[DEV]))
    pinned = _images(render("tidemill", *settings, f"image.{component}.digest={digest}", files=[DEV]))
    others = {f"registry.example.com/platform/tidemill/{o}:v8" for o in ("operator", "ingest", "processor", "api")}
    assert f"registry.example.com/platform/ours/{component}:v9" in tagged
    assert len(tagged & others) == 3
    assert f"registry.example.com/platform/ours/{component}@{digest}" in pinned


def _images(manifests: list[dict[str, Any]]) -> set[str]:
    operator = _operator(manifests)
    workloads = [
        e["value"]
        for e in operator["env"]
        if e["name"] in {f"TIDEMILL_IMAGE_{c}" for c in ("INGEST", "PROCESSOR", "API")}
    ]
    return {operator["image"], *workloads}


def test_images_of_the_dev_stack_can_be_replaced(render: Any) -> None:
    """Where nothing can be pulled, images of our own are used."""
    settings = [f"{name}.image=tidemill-dev/{name}:1" for name in ("kafka", "postgres", "redis", "prometheus")]
    images = {container["image"] for _, container in _containers(render("dev-stack", *settings))}
    assert images == {f"tidemill-dev/{name}:1" for name in ("kafka", "postgres", "redis", "prometheus")}


# Chart, setting, what the message names.
WRONG = [
    ("tidemill", "operator.replica=2", "replica"),
    ("tidemill", "operator.replicas=two", "replicas"),
    ("tidemill", "kafka.brokers=kafka", "brokers"),
    ("tidemill", "redis.url=redis://:secret@cache:6379", "url"),
    ("tidemill", "image.pullPolicy=Sometimes", "pullPolicy"),
    ("tidemill", "image.api.digest=sha256:abc", "digest"),
    ("tidemill", "resilience.breakers.database.failure=3", "failure"),
    ("tidemill", "watch.namespaces={Shop}", "namespaces"),
    ("tidemill", "defaults.replicationFactor=0", "replicationFactor"),
    ("dev-stack", "kafka.replicas=0", "replicas"),
    ("dev-stack", "kafka.clusterId=short", "clusterId"),
    ("dev-stack", "storage.size=much", "size"),
]


@pytest.mark.parametrize(("chart", "setting", "named"), WRONG)
def test_wrong_values_are_refused(chart: str, setting: str, named: str, render: Any) -> None:
    """Before anything is installed, and with the value named."""
    files = [DEV] if chart == "tidemill" else []
    with pytest.raises(ValueError, match=named):
        render(chart, setting, files=files)


@pytest.mark.parametrize("missing", ["kafka.brokers", "postgres.existingSecret"])
def test_what_is_required_is_asked_for(missing: str, render: Any) -> None:
    """The message names the value."""
    with pytest.raises(ValueError, match=f"{missing} is required"):
        render("tidemill", f"{missing}=", files=[DEV])


def test_a_platform_has_one_kafka_connect(render: Any) -> None:
    """Which needs a namespace if it is one of Strimzi's."""
    with pytest.raises(ValueError, match=r"connect\.strimzi\.namespace is required"):
        render("tidemill", "connect.strimzi.cluster=my-connect", files=[DEV])
    with pytest.raises(ValueError, match=r"connect\.url: set only one of them"):
        render("tidemill", "connect.image=connect:1", "connect.url=http://connect:8083", files=[DEV])


@pytest.mark.parametrize("key", ["", "client.json"], ids=["empty", "the same"])
def test_pods_of_pipelines_do_not_get_the_operators_kafka_login(key: str, render: Any) -> None:
    """In production that is refused, with what to do; the values for production name another one."""
    refused = "kafka.workloadKey.*name another key of the Secret tidemill-kafka"
    with pytest.raises(ValueError, match=refused):
        render("tidemill", f"kafka.workloadKey={key}", files=[PROD])
    render("tidemill", f"kafka.workloadKey={key}", "production=false", files=[PROD])
    render("tidemill", f"kafka.workloadKey={key}", "kafka.existingSecret=", files=[PROD])


def test_pipelines_beside_the_operator_are_refused(render: Any) -> None:
    """Its Secrets would be within reach of whoever may make pipelines."""
    with pytest.raises(ValueError, match="tidemill-system"):
        render("tidemill", "watch.namespaces={tidemill-system}", files=[DEV])


def test_listed_namespaces_get_roles_and_no_webhook(render: Any) -> None:
    """No right beyond these namespaces."""
    found = render("tidemill", "watch.namespaces={shop,analytics}", "rbac.aggregate=false", files=[DEV])
    roles = {(m["metadata"]["namespace"], m["metadata"]["name"]) for m in _of(found, "Role")}
    name = "tidemill-system-tidemill"
    assert roles == {("shop", name), ("analytics", name), ("tidemill-system", "tidemill")}
    assert (
        _of(found, "ClusterRole")
        + _of(found, "ValidatingWebhookConfiguration")
        + _of(found, "MutatingWebhookConfiguration")
        == []
    )
    assert {e["name"]: e.get("value") for e in _operator(found)["env"]}["TIDEMILL_WEBHOOK_PORT"] == "0"


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
    (role,) = [m for m in _of(found, "Role") if m["metadata"]["namespace"] == "kafka"]
    assert role["rules"] == rbac.strimzi_rules()
    (binding,) = [m for m in _of(found, "RoleBinding") if m["metadata"]["namespace"] == "kafka"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert {e["name"]: e.get("value") for e in _operator(found)["env"]}[
        "TIDEMILL_CONNECT_STRIMZI"
    ] == "kafka/my-connect"
    assert "kafka.strimzi.io" not in str(render("tidemill", files=[DEV]))


def test_the_operator_may_reach_its_connect_workers(render: Any) -> None:
    found = render("tidemill", "connect.image=connect:1", "connect.egressPorts={5432,3306}", files=[DEV])
    env = {e["name"]: e.get("value") for e in _operator(found)["env"]}
    assert (env["TIDEMILL_CONNECT_IMAGE"], env["TIDEMILL_CONNECT_EGRESS_PORTS"]) == ("connect:1", "5432,3306")
    assert "TIDEMILL_CONNECT_SECRETS" not in env
    policies = [m for m in _of(found, "NetworkPolicy") if m["metadata"]["name"] == "tidemill"]
    ports = [port["port"] for policy in policies for rule in policy["spec"]["egress"] for port in rule["ports"]]
    assert 8083 in ports


def test_the_webhook_stops_nobody(render: Any) -> None:
    """It may be away, and what is being deleted is not its business."""
    for kind in ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"):
        (webhook,) = _of(render("tidemill", files=[DEV]), kind)[0]["webhooks"]
        assert webhook["failurePolicy"] == "Ignore"
        assert webhook["matchConditions"][0]["expression"] == "!has(object.metadata.deletionTimestamp)"


def test_two_operators_get_a_disruption_budget(render: Any) -> None:
    """With one it would block a drain, or do nothing."""
    assert [m["spec"]["maxUnavailable"] for m in _of(render("tidemill", files=[CI]), "PodDisruptionBudget")] == [1]
    assert _of(render("tidemill", files=[DEV]), "PodDisruptionBudget") == []


def test_the_crd_is_the_generated_one_and_is_kept(render: Any) -> None:
    """Removing a release must not remove everybody's pipelines."""
    (crd,) = _of(render("tidemill", files=[DEV]), "CustomResourceDefinition")
    assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert crd == yaml.safe_load((ROOT / "crds" / "analyticspipelines.yaml").read_text())


def test_resilience_of_values_goes_over_the_defaults(render: Any, tmp_path: Path) -> None:
    """Numbers stay whole numbers, however large, and the workloads accept the file."""
    values = tmp_path / "values.yaml"
    values.write_text(
        "resilience: {fallbacks: {memory_cache: {max_entries: 2000000}}, breakers: {redis: {failures: 9}}}"
    )
    found = render("tidemill", files=[DEV, values])
    text = next(m for m in _of(found, "ConfigMap") if m["metadata"]["name"] == "tidemill-resilience")["data"]
    file = tmp_path / "resilience.yaml"
    file.write_text(text["resilience.yaml"])
    config = ResilienceConfig.load(file, {})
    assert config.fallbacks.memory_cache.max_entries == 2_000_000
    assert config.breakers.redis.failures == 9
    assert config.breakers.database == ResilienceConfig.load(ROOT / "config" / "resilience.yaml", {}).breakers.database


def test_secrets_are_referenced_and_never_written(render: Any) -> None:
    """The production values hold no password, and the chart makes no Secret."""
    found = render("tidemill", files=[PROD])
    by_name = {entry["name"]: entry for entry in _operator(found)["env"]}
    assert _of(found, "Secret") == []
    assert by_name["TIDEMILL_POSTGRES_URL"]["valueFrom"]["secretKeyRef"] == {"name": "analytics-app", "key": "uri"}
    assert by_name["TIDEMILL_INGEST_BYTES_PER_SECOND"]["value"] == "67108864", "written out, not as 6.7e+07"
    assert by_name["TIDEMILL_REDIS_URL"]["valueFrom"]["secretKeyRef"] == {"name": "tidemill-redis", "key": "url"}
    assert by_name["TIDEMILL_KAFKA_CONFIG"]["value"] == "/etc/tidemill/kafka/client/client.json"


def test_authorities_are_mounted_where_the_variables_say(render: Any) -> None:
    """In whoever works as the operator does: the clean-up Job connects to the same servers."""
    settings = ["redis.caSecret=cache-ca", "redis.caKey=authority.pem", "postgres.caSecret=db-ca"]
    found = render("tidemill", *settings, files=[CI])
    (job,) = _of(found, "CronJob")
    (operator,) = (m for m in _of(found, "Deployment"))
    for pod in (operator["spec"]["template"]["spec"], job["spec"]["jobTemplate"]["spec"]["template"]["spec"]):
        (container,) = pod["containers"]
        told = {entry["name"]: entry.get("value") for entry in container["env"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume.get("secret") for volume in pod["volumes"]}
        for server, secret, key in (("postgres", "db-ca", "ca.crt"), ("redis", "cache-ca", "authority.pem")):
            assert told[f"TIDEMILL_{server.upper()}_CA"] == f"{mounts[f'{server}-ca']}/ca.crt"
            item = {"key": key, "path": "ca.crt"}
            assert volumes[f"{server}-ca"] == {"secretName": secret, "items": [item]}
    told = {entry["name"] for entry in _operator(render("tidemill", files=[DEV]))["env"]}
    assert not {"TIDEMILL_POSTGRES_CA", "TIDEMILL_REDIS_CA"} & told


def test_the_operator_reaches_kafka_connect(render: Any) -> None:
    """Its variables are there only with a URL, whose port is open to the operator."""
    found = render("tidemill", "connect.url=http://connect:8083", files=[CI])
    told = {entry["name"]: entry.get("value") for entry in _operator(found)["env"]}
    assert told["TIDEMILL_CONNECT_URL"] == "http://connect:8083"
    assert told["TIDEMILL_CONNECT_SECRETS"] == "${secrets:{namespace}/{name}:{key}}"
    ports = [
        port["port"] for m in _of(found, "NetworkPolicy") for rule in m["spec"]["egress"] for port in rule["ports"]
    ]
    assert 8083 in ports
    without = render("tidemill", files=[CI])
    assert not any(entry["name"].startswith("TIDEMILL_CONNECT") for entry in _operator(without)["env"])


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


def test_brokers_form_one_quorum(render: Any) -> None:
    """Every broker is a voter, and topics survive the loss of one."""
    found = render("dev-stack")
    config = next(m for m in _of(found, "ConfigMap") if m["metadata"]["name"] == "dev-stack-kafka")["data"]
    lines = dict(line.split("=", 1) for line in config["common.properties"].splitlines())
    assert len(lines["controller.quorum.voters"].split(",")) == 3
    assert (lines["default.replication.factor"], lines["min.insync.replicas"]) == ("3", "2")


def test_monitoring_is_optional_and_complete(render: Any) -> None:
    """All of it in production, none where the Prometheus operator is not."""
    kinds = [manifest["kind"] for manifest in render("tidemill", files=[PROD])]
    assert {"ServiceMonitor", "PodMonitor", "PrometheusRule"} <= set(kinds)
    assert not {"ServiceMonitor", "PodMonitor", "PrometheusRule"} & {m["kind"] for m in render("tidemill", files=[DEV])}
    found = {m["metadata"]["name"]: m for m in _of(render("tidemill", files=[PROD]), "ConfigMap")}
    dashboards = found["tidemill-dashboards"]["data"]
    assert {json.loads(text)["uid"] + ".json" for text in dashboards.values()} == set(dashboards)


@pytest.mark.parametrize("url", ["https://tidemill.dev/runbooks/", "https://runbooks.example/"])
def test_alerts_name_their_runbook_where_it_is_read(render: Any, url: str) -> None:
    """The address is the installation's own."""
    settings = ["metrics.prometheusRule.enabled=true"]
    settings += [] if "tidemill" in url else [f"metrics.prometheusRule.runbookUrl={url}"]
    (rule,) = _of(render("tidemill", *settings, files=[DEV]), "PrometheusRule")
    alerts = [alert for group in rule["spec"]["groups"] for alert in group["rules"]]
    assert {a["annotations"]["runbook_url"] for a in alerts} == {f"{url}{a['alert'].lower()}.md" for a in alerts}
