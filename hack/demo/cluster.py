"""Applies, queries and deletes the demo's pipeline in a Kubernetes cluster with kubectl, like a user."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from demo.runtime import DemoError, Ends, all_ends, until

OPERATOR_NAMESPACE = "tidemill-system"
PORTS = {"ingest": 8080, "api": 8081}
_READY_SECONDS = 420.0
_GONE_SECONDS = 180.0
_REACH_SECONDS = 60.0
_CONNECT_SECONDS = 5.0
_RENEW_SECONDS = 0.5
_MARK = "tidemill.dev/demo"
# This program runs in the operator's pod, because broker names only resolve inside the cluster.
_ENDS = """\
import json, os, sys
from confluent_kafka.admin import AdminClient
from tidemill_operator.actuators.kafka.offsets import LATEST, OffsetReader
brokers, topic = os.environ["TIDEMILL_KAFKA_BROKERS"], sys.argv[1]
partitions = AdminClient({"bootstrap.servers": brokers}).list_topics(topic, timeout=20).topics[topic].partitions
offsets = OffsetReader(brokers).offsets([(topic, partition) for partition in partitions], LATEST)
print(json.dumps({"ends": offsets.of(topic), "faults": list(offsets.faults.values())}))
"""


class Kubectl:
    """Runs kubectl with one cluster's kubeconfig."""

    def __init__(self, program: Path, kubeconfig: Path) -> None:
        self._command = [str(program), "--kubeconfig", str(kubeconfig)]

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl and return its output.

        Raises:
            DemoError: kubectl fails. The message contains its output.
        """
        done = subprocess.run([*self._command, *arguments], input=stdin, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DemoError(f"kubectl {' '.join(arguments[:6])} failed: {done.stderr.strip()[-2000:]}")
        return done.stdout

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start kubectl and ignore its output."""
        return subprocess.Popen([*self._command, *arguments], stdout=subprocess.DEVNULL, text=True)


class Forward:
    """A local port that is forwarded to a Service, even if its pods are replaced.

    `kubectl port-forward` ends together with the pod that it has chosen, and is then started again. Requests that are
    open at this moment fail.
    """

    def __init__(self, kubectl: Kubectl, namespace: str, service: str, port: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self._command = ("port-forward", f"service/{service}", f"{self.port}:{port}", "--namespace", namespace)
        self._kubectl = kubectl
        self._over = threading.Event()
        self._process = kubectl.start(*self._command)
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _keep(self) -> None:
        while True:
            self._process.wait()
            if self._over.wait(_RENEW_SECONDS):
                return
            self._process = self._kubectl.start(*self._command)

    def close(self) -> None:
        """Close the port."""
        self._over.set()
        while self._keeper.is_alive():
            self._process.terminate()
            self._keeper.join(_RENEW_SECONDS)


class ClusterPlatform:
    """One pipeline in a cluster.

    Args:
        document: The pipeline's resource.
        kubectl: The kubectl of the cluster.
        components: The components that are reached through their Service: `ingest`, `api` or both.
    """

    def __init__(self, document: dict[str, Any], kubectl: Kubectl, components: Sequence[str] = tuple(PORTS)) -> None:
        self.document, self._components = document, components
        self.name = str(self.document["metadata"]["name"])
        self.namespace = str(self.document["metadata"].get("namespace", "default"))
        self._kubectl = kubectl
        self._urls: dict[str, str] = {}
        self._forwards: list[Forward] = []

    @property
    def logs(self) -> str:
        """The command that shows the pods' logs."""
        return f"kubectl logs --namespace {self.namespace} --all-containers --selector app.kubernetes.io/name=tidemill"

    def start(self) -> None:
        """Apply the pipeline in its own restricted namespace, and wait until it is ready.

        Raises:
            DemoError: The pipeline is refused or is not ready in time, or the namespace was not created by a demo.
        """
        self._remove_former()
        labels = {"pod-security.kubernetes.io/enforce": "restricted", _MARK: "true"}
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace, "labels": labels}}
        self._kubectl("apply", "--filename", "-", stdin=yaml.safe_dump(namespace))
        self.apply()

    def apply(self) -> None:
        """Apply the current document of the pipeline in its existing namespace, and wait until the pipeline is ready.

        Raises:
            DemoError: The pipeline is refused, or is not ready in time.
        """
        self._kubectl("apply", "--filename", "-", stdin=yaml.safe_dump(self.document))
        until(self._ready, seconds=_READY_SECONDS, what=f"{self.namespace}/{self.name} is ready", pause_seconds=0.5)
        self.reach()

    def reach(self) -> None:
        """Determine the address of each component's Service.

        Raises:
            DemoError: A Service does not accept connections in time.
        """
        for component in self._components:
            if component not in self._urls:
                self._urls[component] = self._reach(component)

    def _remove_former(self) -> None:
        """Remove the pipeline and namespace of an earlier demo.

        Raises:
            DemoError: The namespace was not created by a demo.
        """
        namespaces = json.loads(self._kubectl("get", "namespaces", "--output", "json"))["items"]
        for namespace in namespaces:
            if namespace["metadata"]["name"] != self.namespace:
                continue
            if _MARK not in namespace["metadata"].get("labels", {}):
                raise DemoError(
                    f"the namespace {self.namespace} was not created by a demo; delete it, or use another cluster"
                )
            self.stop()

    def _ready(self) -> bool:
        resource = self._get()
        status = resource.get("status", {})
        conditions = {condition["type"]: condition for condition in status.get("conditions", ())}
        stalled = conditions.get("Stalled")
        if stalled and stalled["status"] == "True":
            raise DemoError(f"{self.namespace}/{self.name} is stalled: {stalled['reason']}: {stalled['message']}")
        ready = conditions.get("Ready", {})
        # During a roll-out the old processes still serve. Wait until the new processes replace them.
        settled = conditions.get("Progressing", {}).get("status") != "True"
        current = ready.get("observedGeneration") == resource["metadata"]["generation"]
        return bool(ready.get("status") == "True" and settled and current)

    def _get(self) -> dict[str, Any]:
        answer = self._kubectl("get", "analyticspipeline", self.name, "--namespace", self.namespace, "--output", "json")
        return dict(json.loads(answer))

    def _reach(self, component: str) -> str:
        """Return the URL of a Service: its cluster address if reachable from here, otherwise a forwarded port."""
        service, port = f"{self.name}-{component}", PORTS[component]
        if _answers(self._address("kubernetes", "default"), 443):
            host = self._address(service, self.namespace)
        else:
            forward = Forward(self._kubectl, self.namespace, service, port)
            self._forwards.append(forward)
            host, port = "127.0.0.1", forward.port
        # The nodes route to the Service's pods only a moment after the pipeline is ready.
        until(lambda: _answers(host, port), seconds=_REACH_SECONDS, what=f"{service} can be reached at {host}:{port}")
        return f"http://{host}:{port}"

    def _address(self, service: str, namespace: str) -> str:
        return self._kubectl(
            "get", "service", service, "--namespace", namespace, "--output", "jsonpath={.spec.clusterIP}"
        )

    def url(self, component: str) -> str:
        """Return the base URL of `ingest` or `api`."""
        return self._urls[component]

    def check_alive(self) -> None:
        """Do nothing: the cluster keeps the pods running."""

    def topic_ends(self) -> dict[int, int]:
        """Return the end offset of each partition of the events topic."""
        topic = f"{self.namespace}.{self.name}.events"

        def ask() -> Ends:
            answer = json.loads(self.run_in_operator("python", "-c", _ENDS, topic).splitlines()[-1])
            return {int(partition): int(end) for partition, end in answer["ends"].items()}, answer["faults"]

        return all_ends(ask, topic)

    def run_in_operator(self, *command: str) -> str:
        """Run a command in the operator's pod, and return its output."""
        return self._kubectl("exec", "deployment/tidemill", "--namespace", OPERATOR_NAMESPACE, "--", *command)

    def table(self) -> str:
        """Return the output of `kubectl get` for the pipeline."""
        return self._kubectl("get", "analyticspipeline", self.name, "--namespace", self.namespace, "--output", "wide")

    def stop(self) -> None:
        """Delete the pipeline and its namespace, and wait until neither exists.

        Raises:
            DemoError: The pipeline or the namespace still exists after some minutes.
        """
        self.leave()
        timeout = f"--timeout={_GONE_SECONDS:.0f}s"
        self._kubectl("delete", "--ignore-not-found", timeout, "namespace", self.namespace)

    def leave(self) -> None:
        """Close forwarded ports, and keep the pipeline."""
        for forward in self._forwards:
            forward.close()
        self._forwards.clear()
        self._urls.clear()


def _answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
        return True
    return False
