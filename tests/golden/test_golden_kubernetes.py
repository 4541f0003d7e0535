"""Tests that the Kubernetes manifests of the examples equal the committed files.

`REFRESH_GOLDEN=1 make unit ARGS="-k golden"` rewrites the files; read the diff before committing it.
"""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tidemill_contract.resource.documents import load_documents
from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_operator.cluster_settings import ConnectWorkers, Placement
from tidemill_operator.plan.build import build_plan
from tidemill_operator.plan.render.connect import connect_manifests
from tidemill_operator.plan.render.kubernetes import common_manifests, render
from tidemill_operator.plan.render.object_metadata import OwnerReference
from tidemill_operator.plan.render.pods import Revisions
from tidemill_operator.settings import Platform

FOLDER = Path(__file__).parent / "kubernetes"
EXAMPLES = sorted((FOLDER.parents[2] / "crds" / "examples").glob("*.yaml"))
PLAIN = Placement(
    images={part: f"registry.example/tidemill-{part}:1" for part in ("processor", "ingest", "api")},
    environment={"TIDEMILL_KAFKA_BROKERS": "kafka.data:9092", "TIDEMILL_POSTGRES_HOST": "postgres.data"},
    egress_ports=(5432, 9092),
)
FULL = Placement(
    images=PLAIN.images,
    pull_policy="Always",
    pull_secrets=("registry",),
    environment=PLAIN.environment,
    connections={"redis-url": "redis://:hidden@redis.data:6379/0", "kafka.json": '{"sasl.password": "hidden"}'},
    resilience="timeouts: {}\n",
    egress_ports=(5432, 6379, 9092),
)
# Parts of a spec that no example has.
OWN_API = {
    "api": {"dedicated": True},
    "processor": {"scaling": {"mode": "external"}, "resources": {"requests": {"cpu": "2", "memory": "2Gi"}}},
}
BRIDGE = {"mqtt": {"broker": "mqtts://broker", "topics": ["plant/#"], "secretRef": {"name": "broker"}}}


def manifests(
    example: Path, placement: Placement, spec: dict[str, Any], source: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return all manifests of an example's pipeline, which is the only pipeline of its namespace."""
    (document,) = load_documents(example.read_text())
    document["spec"] |= spec
    document["spec"]["source"] |= source
    plan = build_plan(AnalyticsPipeline.model_validate(document), Platform(runtime="kubernetes"), 1)
    owner = OwnerReference("0b5e7a3c-0000-4000-8000-000000000001", plan.name)
    rendered = list(common_manifests(plan.namespace, sharing=[owner], placement=placement))
    for workload in plan.workloads:
        rendering = render(
            workload,
            pipeline=plan.name,
            owner=owner,
            sharing=[owner],
            placement=placement,
            revisions=Revisions("credentials", "connections"),
        )
        rendered += [*rendering.own, *rendering.workload]
    return rendered


def source_on_another_cluster(example: Path) -> dict[str, Any]:
    """Return the example's source, moved to another Kafka cluster."""
    (document,) = load_documents(example.read_text())
    kafka = {"bootstrapServers": "a.crm.example:9093,b.crm.example:9094", "secretRef": {"name": "crm-kafka"}}
    return {**document["spec"]["source"], "kafka": kafka, "topic": {"name": "crm.orders", "managed": False}}


CASES = {example.stem: (example, PLAIN, {}, {}) for example in EXAMPLES}
CASES["flights-own-api"] = (EXAMPLES[0], FULL, OWN_API, {})
CASES["server-metrics-mqtt"] = (EXAMPLES[1], PLAIN, {}, BRIDGE)
CASES["flights-other-cluster"] = (EXAMPLES[0], PLAIN, {}, source_on_another_cluster(EXAMPLES[0]))
CASES["python-stage"] = (EXAMPLES[0].parent / "events" / "python-stage.yaml", FULL, {}, {})


CONNECT = ConnectWorkers(
    "registry.example/connect:1", replicas=2, egress_ports=(3306,), caller_namespace="tidemill-system"
)


def connect_workers() -> list[dict[str, Any]]:
    """Return the manifests of the Connect workers that two pipelines of a namespace share."""
    owners = [OwnerReference(f"0b5e7a3c-0000-4000-8000-00000000000{number}", f"shop{number}") for number in (1, 2)]
    return list(connect_manifests("shop", workers=CONNECT, placement=PLAIN, owners=owners, revision="revision"))


@pytest.mark.parametrize("name", [*CASES, "connect-workers"])
def test_manifests_of_an_example_equal_the_committed_file(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    rendered = manifests(*CASES[name]) if name in CASES else connect_workers()
    # JSON makes copies of shared objects, for which YAML would write aliases.
    written = [json.loads(json.dumps(manifest)) for manifest in rendered]
    text = "---\n".join(yaml.safe_dump(item, sort_keys=False, allow_unicode=True, width=120) for item in written)
    if os.environ.get("REFRESH_GOLDEN") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    committed = path.read_text() if path.exists() else ""
    changed = "".join(difflib.unified_diff(committed.splitlines(True), text.splitlines(True), "committed", "rendered"))
    if changed:
        pytest.fail(f"{path.name} differs; if that is intended, set REFRESH_GOLDEN=1:\n{changed}", pytrace=False)


def test_the_committed_files_are_those_of_the_cases() -> None:
    assert {f"{name}.yaml" for name in [*CASES, "connect-workers"]} == {path.name for path in FOLDER.glob("*")}


def test_a_python_stage_gets_no_login_of_postgres_or_redis() -> None:
    """The only Secret that its pods mount holds the client settings of Kafka."""
    rendered = manifests(*CASES["python-stage"])
    (pod,) = [
        m["spec"]["template"]["spec"]
        for m in rendered
        if m["metadata"]["name"] == "python-stage-stage" and "replicas" in m.get("spec", {})
    ]
    (container,) = pod["containers"]
    assert not [env["name"] for env in container["env"] if "POSTGRES" in env["name"] or "REDIS" in env["name"]]
    secrets = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
    assert [[item["key"] for item in secret["items"]] for secret in secrets] == [["kafka.json"]]


def test_no_manifest_holds_a_secret() -> None:
    """Only Secrets hold passwords, and the rendering of a workload contains no Secret."""
    assert "hidden" not in "".join(path.read_text() for path in FOLDER.glob("*.yaml"))
