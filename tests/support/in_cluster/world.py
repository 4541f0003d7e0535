"""The platform in its cluster, and what tests ask of it."""

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
# Run where the operator is: brokers' names and the database's address are the cluster's own.
_LEFT = """\
import json, os, psycopg
from confluent_kafka.admin import AdminClient
topics = AdminClient({"bootstrap.servers": os.environ["TIDEMILL_KAFKA_BROKERS"]}).list_topics(timeout=20).topics
with psycopg.connect(os.environ["TIDEMILL_POSTGRES_URL"]) as connection:
    schemas = [name for name, in connection.execute("SELECT nspname FROM pg_namespace")]
    users = connection.execute("SELECT usename, count(*) FROM pg_stat_activity WHERE usename IS NOT NULL GROUP BY 1")
    print(json.dumps({"topics": sorted(topics), "schemas": schemas, "connections": dict(users.fetchall())}))
"""

# What cannot be asked yet is asked again.
eventually = functools.partial(
    waiting.eventually, seconds=120.0, pause_seconds=1.0, retry_on=(DemoError, httpx.TransportError)
)


@dataclass
class World:
    """The platform in its cluster.

    Attributes:
        stays: whether the cluster outlives these tests.
        made: namespaces that are there.
        dropped: namespaces that nobody waits for any more.
    """

    kubeconfig: Path
    kubectl: Kubectl
    helm: Helm
    figures: dict[str, str]
    local: bool
    stays: bool
    made: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def json(self, *arguments: str) -> Any:
        """What kubectl answers, parsed."""
        return json.loads(self.kubectl(*arguments, "--output", "json"))

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any]:
        """An object; empty: it is not there."""
        answer = self.kubectl("get", kind, name, "--namespace", namespace, "--ignore-not-found", "--output", "json")
        return json.loads(answer) if answer.strip() else {}

    def make_namespace(self, name: str) -> str:
        """A namespace that takes restricted pods only; removed at the end."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted", MARK: "true"}
        document = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        self.kubectl("apply", "--filename", "-", stdin=json.dumps(document))
        self.made.append(name)
        return name

    def new_namespace(self, prefix: str) -> str:
        """One with a name that no other run has."""
        return self.make_namespace(f"{prefix}-{secrets.token_hex(3)}")

    def platform(self, document: dict[str, Any], components: Sequence[str] = tuple(PORTS)) -> ClusterPlatform:
        """A pipeline that is not applied yet, with the components that clients reach."""
        return ClusterPlatform(document, self.kubectl, components)

    def pipeline(self, document: dict[str, Any]) -> Sent:
        """Apply a pipeline in a namespace that is there, and wait until it is ready."""
        platform = self.platform(document)
        platform.apply()
        return Sent(platform)

    def load_image(self, archive: Path) -> None:
        """Load an image from a file into the cluster."""
        subprocess.run([str(CLUSTER), "load-images", str(archive)], cwd=ROOT, check=True, capture_output=True)

    def pods(self, namespace: str, component: str | None = None) -> list[dict[str, Any]]:
        """Pods of pipelines that are not on their way out."""
        selector = "app.kubernetes.io/name=tidemill"
        selector += f",app.kubernetes.io/component={component}" if component else ""
        found = self.json("get", "pods", "--namespace", namespace, "--selector", selector)["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def scale_operator(self, replicas: int) -> None:
        """Set the number of operators and wait until it is so."""
        target = ("deployment/tidemill", "--namespace", OPERATOR_NAMESPACE)
        self.kubectl("scale", *target, f"--replicas={replicas}")
        self.kubectl("rollout", "status", *target, "--timeout=180s")

    def in_operator(self, *command: str) -> str:
        """Run a command where the operator runs; what it printed."""
        return self.kubectl("exec", "deployment/tidemill", "--namespace", OPERATOR_NAMESPACE, "--", *command)

    def data(self) -> dict[str, Any]:
        """Kafka's topics, Postgres' schemas and the number of its connections by login."""
        return dict(json.loads(self.in_operator("python", "-c", _LEFT).splitlines()[-1]))

    def memory(self, namespace: str) -> dict[str, int]:
        """Bytes that each pod's processes need, as the kubelets count them."""
        found = {}
        for node in self.json("get", "nodes")["items"]:
            path = f"/api/v1/nodes/{node['metadata']['name']}/proxy/stats/summary"
            for pod in json.loads(self.kubectl("get", "--raw", path))["pods"]:
                if pod["podRef"]["namespace"] == namespace and "workingSetBytes" in pod.get("memory", {}):
                    found[pod["podRef"]["name"]] = int(pod["memory"]["workingSetBytes"])
        return found

    def describe(self) -> str:
        """For the report of a failure: pods, what pipelines and events say, the operators' last words."""
        told = []
        for question in (
            "get pods --all-namespaces --output wide",
            "get analyticspipelines --all-namespaces --output wide",
            "get analyticspipelines --all-namespaces --output jsonpath={.items[*].status.conditions}",
            "get events --all-namespaces --sort-by .lastTimestamp",
            f"logs --namespace {OPERATOR_NAMESPACE} --selector app.kubernetes.io/name=tidemill-operator --tail 40",
        ):
            try:
                told.append(f"--- kubectl {question}\n{self.kubectl(*question.split())[-6000:]}")
            except DemoError as error:
                told.append(str(error))
        return "\n".join(told)

    def delete_namespaces(self, names: Sequence[str]) -> None:
        """Remove what tests have made, with its data."""
        for namespace in names:
            self._delete_pipelines(namespace, "--timeout=120s")
            self.kubectl("delete", "namespace", namespace, "--ignore-not-found", "--timeout=180s")
            self.made = [made for made in self.made if made != namespace]

    def drop_namespaces(self, names: Sequence[str]) -> None:
        """Remove them beside the next tests. A cluster that stays is waited for at the end."""
        for namespace in names:
            self._delete_pipelines(namespace, "--wait=false")
            self.kubectl("delete", "namespace", namespace, "--wait=false")
            self.made = [made for made in self.made if made != namespace]
            self.dropped.append(namespace)

    def _delete_pipelines(self, namespace: str, how: str) -> None:
        for item in self.json("get", "analyticspipelines", "--namespace", namespace)["items"]:
            patch = json.dumps({"spec": {"reclaimPolicy": "Delete"}})
            target = ("analyticspipeline", item["metadata"]["name"], "--namespace", namespace)
            self.kubectl("patch", *target, "--type", "merge", "--patch", patch)
            # Deleted before the operator has seen it, the data would stay.
            eventually(partial(self._reclaims, item["metadata"]["name"], namespace), what="it reclaims")
            self.kubectl("delete", *target, how)

    def _reclaims(self, name: str, namespace: str) -> bool:
        found = self.get("analyticspipeline", name, namespace)
        return not found or "tidemill.dev/reclaim" in found["metadata"].get("finalizers", ())
