"""Tests of chart values: their effect on the manifests that Helm renders, and the values that a chart refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rendered.charts import CI, DEV, PROD, ROOT, containers, of_kind, operator_container
from tidemill_chassis.resilience.config import ResilienceConfig

pytestmark = pytest.mark.kubernetes


@pytest.mark.parametrize("component", ["operator", "ingest", "processor", "api"])
def test_registry_repository_tag_and_digest_of_each_image_can_be_set(component: str, render: Any) -> None:
    digest = "sha256:" + "0" * 64
    settings = ["image.registry=registry.example.com/platform/", f"image.{component}.repository=ours/{component}"]
    tagged = _images(render("tidemill", *settings, f"image.{component}.tag=v9", "image.tag=v8", files=[DEV]))
    pinned = _images(render("tidemill", *settings, f"image.{component}.digest={digest}", files=[DEV]))
    others = {f"registry.example.com/platform/tidemill/{o}:v8" for o in ("operator", "ingest", "processor", "api")}
    assert f"registry.example.com/platform/ours/{component}:v9" in tagged
    assert len(tagged & others) == 3
    assert f"registry.example.com/platform/ours/{component}@{digest}" in pinned


def _images(manifests: list[dict[str, Any]]) -> set[str]:
    """Return the operator's image, and the images that the operator uses for workloads."""
    operator = operator_container(manifests)
    workloads = [
        e["value"]
        for e in operator["env"]
        if e["name"] in {f"TIDEMILL_IMAGE_{c}" for c in ("INGEST", "PROCESSOR", "API")}
    ]
    return {operator["image"], *workloads}


def test_images_of_the_dev_stack_can_be_replaced(render: Any) -> None:
    """A cluster that cannot pull images uses images that were built for it."""
    settings = [f"{name}.image=tidemill-dev/{name}:1" for name in ("kafka", "postgres", "redis", "prometheus")]
    images = {container["image"] for _, container in containers(render("dev-stack", *settings))}
    assert images == {f"tidemill-dev/{name}:1" for name in ("kafka", "postgres", "redis", "prometheus")}


# Columns: chart, setting, value that the message names.
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
    """Helm refuses a wrong value before it installs anything, and names the value."""
    files = [DEV] if chart == "tidemill" else []
    with pytest.raises(ValueError, match=named):
        render(chart, setting, files=files)


@pytest.mark.parametrize("missing", ["kafka.brokers", "postgres.existingSecret"])
def test_a_missing_required_value_is_named(missing: str, render: Any) -> None:
    with pytest.raises(ValueError, match=f"{missing} is required"):
        render("tidemill", f"{missing}=", files=[DEV])


def test_only_one_kafka_connect_can_be_configured(render: Any) -> None:
    """Two settings of Kafka Connect are refused. A cluster of Strimzi also needs a namespace."""
    with pytest.raises(ValueError, match=r"connect\.strimzi\.namespace is required"):
        render("tidemill", "connect.strimzi.cluster=my-connect", files=[DEV])
    with pytest.raises(ValueError, match=r"connect\.url: set only one of them"):
        render("tidemill", "connect.image=connect:1", "connect.url=http://connect:8083", files=[DEV])


@pytest.mark.parametrize("key", ["", "client.json"], ids=["empty", "the same"])
def test_pods_of_pipelines_do_not_get_the_operators_kafka_login(key: str, render: Any) -> None:
    """With `production=true`, a chart without a separate Kafka login for pipelines is refused."""
    refused = "kafka.workloadKey.*name another key of the Secret tidemill-kafka"
    with pytest.raises(ValueError, match=refused):
        render("tidemill", f"kafka.workloadKey={key}", files=[PROD])
    render("tidemill", f"kafka.workloadKey={key}", "production=false", files=[PROD])
    render("tidemill", f"kafka.workloadKey={key}", "kafka.existingSecret=", files=[PROD])


def test_pipelines_beside_the_operator_are_refused(render: Any) -> None:
    """A user who may create pipelines in the operator's namespace could read the operator's Secrets."""
    with pytest.raises(ValueError, match="tidemill-system"):
        render("tidemill", "watch.namespaces={tidemill-system}", files=[DEV])


def test_resilience_values_override_the_defaults(render: Any, tmp_path: Path) -> None:
    """Large integers are rendered as integers, and the workloads accept the rendered file."""
    values = tmp_path / "values.yaml"
    values.write_text(
        "resilience: {fallbacks: {memory_cache: {max_entries: 2000000}}, breakers: {redis: {failures: 9}}}"
    )
    manifests = render("tidemill", files=[DEV, values])
    text = next(m for m in of_kind(manifests, "ConfigMap") if m["metadata"]["name"] == "tidemill-resilience")["data"]
    file = tmp_path / "resilience.yaml"
    file.write_text(text["resilience.yaml"])
    config = ResilienceConfig.load(file, {})
    assert config.fallbacks.memory_cache.max_entries == 2_000_000
    assert config.breakers.redis.failures == 9
    assert config.breakers.database == ResilienceConfig.load(ROOT / "config" / "resilience.yaml", {}).breakers.database


def test_secrets_are_referenced_and_never_written(render: Any) -> None:
    """The production values hold no password, and the chart renders no Secret."""
    manifests = render("tidemill", files=[PROD])
    by_name = {entry["name"]: entry for entry in operator_container(manifests)["env"]}
    assert of_kind(manifests, "Secret") == []
    assert by_name["TIDEMILL_POSTGRES_URL"]["valueFrom"]["secretKeyRef"] == {"name": "analytics-app", "key": "uri"}
    assert by_name["TIDEMILL_INGEST_BYTES_PER_SECOND"]["value"] == "67108864", "an integer, not 6.7e+07"
    assert by_name["TIDEMILL_REDIS_URL"]["valueFrom"]["secretKeyRef"] == {"name": "tidemill-redis", "key": "url"}
    assert by_name["TIDEMILL_KAFKA_CONFIG"]["value"] == "/etc/tidemill/kafka/client/client.json"


def test_ca_certificates_are_mounted_at_the_paths_that_the_variables_name(render: Any) -> None:
    """The operator and its clean-up Job both mount them, because both connect to Postgres and Redis."""
    settings = ["redis.caSecret=cache-ca", "redis.caKey=authority.pem", "postgres.caSecret=db-ca"]
    manifests = render("tidemill", *settings, files=[CI])
    (job,) = of_kind(manifests, "CronJob")
    (operator,) = (m for m in of_kind(manifests, "Deployment"))
    for pod in (operator["spec"]["template"]["spec"], job["spec"]["jobTemplate"]["spec"]["template"]["spec"]):
        (container,) = pod["containers"]
        variables = {entry["name"]: entry.get("value") for entry in container["env"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume.get("secret") for volume in pod["volumes"]}
        for server, secret, key in (("postgres", "db-ca", "ca.crt"), ("redis", "cache-ca", "authority.pem")):
            assert variables[f"TIDEMILL_{server.upper()}_CA"] == f"{mounts[f'{server}-ca']}/ca.crt"
            item = {"key": key, "path": "ca.crt"}
            assert volumes[f"{server}-ca"] == {"secretName": secret, "items": [item]}
    defaults = {entry["name"] for entry in operator_container(render("tidemill", files=[DEV]))["env"]}
    assert not {"TIDEMILL_POSTGRES_CA", "TIDEMILL_REDIS_CA"} & defaults
