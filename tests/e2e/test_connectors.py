"""Test of Connect workers that the operator runs in a cluster for the connectors of a pipeline."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from demo.cluster import OPERATOR_NAMESPACE
from demo.installation import BUILT, CLUSTER, ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.matrix]

_NAME = "tidemill-connect"
# Prints the end offset of a topic. It runs in the operator's pod, which can resolve the brokers' names.
_END = """\
import os, sys
from tidemill_operator.actuators.kafka.offsets import LATEST, OffsetReader
offsets = OffsetReader(os.environ["TIDEMILL_KAFKA_BROKERS"]).offsets([(sys.argv[1], 0)], LATEST)
print(sum(offsets.of(sys.argv[1]).values()))
"""


@pytest.fixture(scope="module")
def with_workers(world: Any) -> Iterator[None]:
    """Install the operator with an image of Kafka Connect, and with two workers for each namespace."""
    before = BUILT.read_text()
    subprocess.run([ROOT / "hack/images/build", "--only", "connect"], cwd=ROOT, check=True, capture_output=True)
    built = json.loads(BUILT.read_text())
    BUILT.write_text(before)  # Other tests load the images that this file lists.
    (image,) = built["images"]
    subprocess.run([CLUSTER, "load-images", *(built["archives"] or [image])], cwd=ROOT, check=True, capture_output=True)
    world.helm.install_operator(f"connect.image={image}", "connect.replicas=2", "connect.memory=512Mi")
    yield
    world.helm.install_operator()


def pipeline(namespace: str) -> dict[str, Any]:
    """Return a pipeline whose connector reads a file of the workers' image. A Secret has the path of the file."""
    transforms = {
        "transforms": "line",
        "transforms.line.type": "org.apache.kafka.connect.transforms.HoistField$Value",
        "transforms.line.field": "line",
    }
    connector = {
        "name": "files",
        "class": "org.apache.kafka.connect.file.FileStreamSourceConnector",
        "config": transforms,
        "secrets": {"file": {"name": "places", "key": "file"}},
    }
    window = {"type": "tumbling", "size": "1m"}
    return {
        "apiVersion": "tidemill.dev/v1alpha1",
        "kind": "AnalyticsPipeline",
        "metadata": {"name": "lines", "namespace": namespace},
        "spec": {
            "source": {
                "topic": {"partitions": 1},
                "fields": [{"name": "line", "type": "string"}],
                "connectors": [connector],
            },
            "aggregations": [{"name": "all", "window": window, "metrics": [{"name": "lines", "function": "count"}]}],
        },
    }


def test_workers_run_a_connector_and_are_deleted_with_the_last_pipeline(
    world: Any, with_workers: None, eventually: Callable[..., Any]
) -> None:
    """The workers run in restricted pods behind NetworkPolicies. Their connector reads the value of a Secret."""
    namespace = world.new_namespace("connect")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "places", "namespace": namespace}}
    secret["stringData"] = {"file": "/etc/debian_version"}  # type: ignore[assignment]
    for document in (secret, pipeline(namespace)):
        world.kubectl("apply", "--filename", "-", stdin=json.dumps(document))
    world.kubectl(
        *("wait", "analyticspipeline", "lines", "--namespace", namespace),
        *("--for=condition=ConnectorsReady", "--timeout=420s"),
    )
    world.kubectl("rollout", "status", f"deployment/{_NAME}", "--namespace", namespace, "--timeout=240s")
    assert len(world.pods(namespace, "connect")) == 2
    (connector,) = world.get("analyticspipeline", "lines", namespace)["status"]["connectors"]
    assert connector == {"name": "files", "state": "RUNNING", "tasks": [{"id": 0, "state": "RUNNING"}]}
    topic = f"{namespace}.lines.events"
    eventually(lambda: int(world.in_operator("python", "-c", _END, topic)) > 0, what="the line is in the topic")
    world.kubectl("delete", "analyticspipeline", "lines", "--namespace", namespace, "--timeout=180s")
    eventually(lambda: not world.get("deployment", _NAME, namespace), what="the workers are deleted")
    assert not world.get("secret", f"{_NAME}-worker", namespace)
    logs = world.kubectl("logs", "deployment/tidemill", "--namespace", OPERATOR_NAMESPACE, "--tail", "2000")
    assert "is forbidden" not in logs
    world.begin_to_delete_namespaces([namespace])
