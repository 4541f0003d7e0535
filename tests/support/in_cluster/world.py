"""The platform in its cluster: namespaces, pipelines, pods and data."""

from __future__ import annotations

import functools
import json
import secrets
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx

import waiting
from demo.cluster import OPERATOR_NAMESPACE, PORTS, ClusterPlatform, Kubectl
from demo.data import ROOT
from demo.installation import CLUSTER, Helm
from demo.runtime import DemoError
from in_cluster.sent import Sent

MARK = "tidemill.dev/e2e"
# Prints topics, schemas and connections. It runs in the operator's pod, which can reach Kafka and Postgres.
_DATA = """\
import json, os, psycopg
from confluent_kafka.admin import AdminClient
topics = AdminClient({"bootstrap.servers": os.environ["TIDEMILL_KAFKA_BROKERS"]}).list_topics(timeout=20).topics
with psycopg.connect(os.environ["TIDEMILL_POSTGRES_URL"]) as connection:
    schemas = [name for name, in connection.execute("SELECT nspname FROM pg_namespace")]
    users = connection.execute("SELECT usename, count(*) FROM pg_stat_activity WHERE usename IS NOT NULL GROUP BY 1")
    print(json.dumps({"topics": sorted(topics), "schemas": schemas, "connections": dict(users.fetchall())}))
"""

# Waits for a condition, and retries after errors of kubectl and of HTTP.
eventually = functools.partial(
    waiting.eventually, seconds=120.0, pause_seconds=1.0, retry_on=(DemoError, httpx.TransportError)
)


@dataclass
class World:
    """The platform in its cluster.

    Attributes:
        figures: Measured values, which the report prints.
        local: Whether the cluster runs on this machine with the provider `local`.
        is_kept: Whether the cluster remains after the tests.
        namespaces: Namespaces that tests have created and not deleted.
        terminating: Namespaces whose deletion has begun, without anybody waiting for it.
    """

    kubeconfig: Path
    kubectl: Kubectl
    helm: Helm
    figures: dict[str, str]
    local: bool
    is_kept: bool
    namespaces: list[str] = field(default_factory=list)
    terminating: list[str] = field(default_factory=list)

    def json(self, *arguments: str) -> Any:
        """Run kubectl with `--output json`, and return the parsed output."""
        return json.loads(self.kubectl(*arguments, "--output", "json"))

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any]:
        """Return an object; an empty dictionary if it does not exist."""
        answer = self.kubectl("get", kind, name, "--namespace", namespace, "--ignore-not-found", "--output", "json")
        return json.loads(answer) if answer.strip() else {}

    def make_namespace(self, name: str) -> str:
        """Create a namespace that admits only restricted pods. The fixture `world` deletes it at the end."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted", MARK: "true"}
        document = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        self.kubectl("apply", "--filename", "-", stdin=json.dumps(document))
        self.namespaces.append(name)
        return name

    def new_namespace(self, prefix: str) -> str:
        """Create a namespace for restricted pods, whose name has a random suffix."""
        return self.make_namespace(f"{prefix}-{secrets.token_hex(3)}")

    def platform(self, document: dict[str, Any], components: Sequence[str] = tuple(PORTS)) -> ClusterPlatform:
        """Return a pipeline that is not applied yet. `components` are those that the test connects to."""
        return ClusterPlatform(document, self.kubectl, components)

    def pipeline(self, document: dict[str, Any]) -> Sent:
        """Apply a pipeline in an existing namespace, and wait until it is ready."""
        platform = self.platform(document)
        platform.apply()
        return Sent(platform)

    def load_image(self, archive: Path) -> None:
        """Load an image from a file into the cluster."""
        subprocess.run([str(CLUSTER), "load-images", str(archive)], cwd=ROOT, check=True, capture_output=True)

    def pods(self, namespace: str, component: str | None = None) -> list[dict[str, Any]]:
        """Return the pods of pipelines that are not terminating."""
        selector = "app.kubernetes.io/name=tidemill"
        selector += f",app.kubernetes.io/component={component}" if component else ""
        pods = self.json("get", "pods", "--namespace", namespace, "--selector", selector)["items"]
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def scale_operator(self, replicas: int) -> None:
        """Set the number of the operator's replicas, and wait for the rollout."""
        target = ("deployment/tidemill", "--namespace", OPERATOR_NAMESPACE)
        self.kubectl("scale", *target, f"--replicas={replicas}")
        self.kubectl("rollout", "status", *target, "--timeout=180s")

    def in_operator(self, *command: str) -> str:
        """Run a command in the operator's pod, and return its output."""
        return self.kubectl("exec", "deployment/tidemill", "--namespace", OPERATOR_NAMESPACE, "--", *command)

    def data(self) -> dict[str, Any]:
        """Return topics of Kafka, and schemas and connections of Postgres (`topics`, `schemas`, `connections`)."""
        return dict(json.loads(self.in_operator("python", "-c", _DATA).splitlines()[-1]))

    def memory(self, namespace: str) -> dict[str, int]:
        """Return the working set of each pod in bytes, as the kubelets report it."""
        sizes = {}
        for node in self.json("get", "nodes")["items"]:
            path = f"/api/v1/nodes/{node['metadata']['name']}/proxy/stats/summary"
            for pod in json.loads(self.kubectl("get", "--raw", path))["pods"]:
                if pod["podRef"]["namespace"] == namespace and "workingSetBytes" in pod.get("memory", {}):
                    sizes[pod["podRef"]["name"]] = int(pod["memory"]["workingSetBytes"])
        return sizes

    def describe(self) -> str:
        """Return the state of the cluster for the report of a failure: pods, pipelines, events and logs."""
        answers = []
        for question in (
            "get pods --all-namespaces --output wide",
            "get analyticspipelines --all-namespaces --output wide",
            "get analyticspipelines --all-namespaces --output jsonpath={.items[*].status.conditions}",
            "get events --all-namespaces --sort-by .lastTimestamp",
            f"logs --namespace {OPERATOR_NAMESPACE} --selector app.kubernetes.io/name=tidemill-operator --tail 40",
        ):
            try:
                answers.append(f"--- kubectl {question}\n{self.kubectl(*question.split())[-6000:]}")
            except DemoError as error:
                answers.append(str(error))
        return "\n".join(answers)

    def delete_namespaces(self, names: Sequence[str]) -> None:
        """Delete namespaces with their pipelines and data, and wait until they are gone."""
        for namespace in names:
            self._delete_pipelines(namespace, "--timeout=120s")
            self.kubectl("delete", "namespace", namespace, "--ignore-not-found", "--timeout=180s")
            self.namespaces = [name for name in self.namespaces if name != namespace]

    def begin_to_delete_namespaces(self, names: Sequence[str]) -> None:
        """Begin to delete namespaces with their pipelines and data. The next tests run meanwhile."""
        for namespace in names:
            self._delete_pipelines(namespace, "--wait=false")
            self.kubectl("delete", "namespace", namespace, "--wait=false")
            self.namespaces = [name for name in self.namespaces if name != namespace]
            self.terminating.append(namespace)

    def _delete_pipelines(self, namespace: str, how: str) -> None:
        for item in self.json("get", "analyticspipelines", "--namespace", namespace)["items"]:
            patch = json.dumps({"spec": {"reclaimPolicy": "Delete"}})
            target = ("analyticspipeline", item["metadata"]["name"], "--namespace", namespace)
            self.kubectl("patch", *target, "--type", "merge", "--patch", patch)
            # The operator must read the new policy before the deletion. Otherwise the data would be kept.
            eventually(partial(self._reclaims, item["metadata"]["name"], namespace), what="the operator has read it")
            self.kubectl("delete", *target, how)

    def _reclaims(self, name: str, namespace: str) -> bool:
        resource = self.get("analyticspipeline", name, namespace)
        return not resource or "tidemill.dev/reclaim" in resource["metadata"].get("finalizers", ())
