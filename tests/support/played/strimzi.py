"""A substitute for Strimzi's operator, which writes the status of KafkaConnector resources without a Kafka Connect.

The CRD has the members of v1beta2 in Strimzi 0.45, without their descriptions.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tidemill_operator.actuators.kubernetes.api import KAFKA_CONNECTOR, Api, Conflict, Document, Kind, NotFound
from tidemill_operator.errors import Reason
from tidemill_operator.plan.connect import strimzi

CLUSTER, NAMESPACE = "my-connect", "kafka"
_ANY = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_SPEC = {
    "class": {"type": "string"},
    "tasksMax": {"type": "integer", "minimum": 1},
    "autoRestart": {
        "type": "object",
        "properties": {"enabled": {"type": "boolean"}, "maxRestarts": {"type": "integer"}},
    },
    "config": _ANY,
    "pause": {"type": "boolean"},
    "state": {"type": "string", "enum": ["paused", "stopped", "running"]},
}
_CONDITION = {name: {"type": "string"} for name in ("type", "status", "lastTransitionTime", "reason", "message")}
_STATUS = {
    "conditions": {"type": "array", "items": {"type": "object", "properties": _CONDITION}},
    "observedGeneration": {"type": "integer"},
    "connectorStatus": _ANY,
    "tasksMax": {"type": "integer"},
    "topics": {"type": "array", "items": {"type": "string"}},
}
CRD: Document = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "kafkaconnectors.kafka.strimzi.io"},
    "spec": {
        "group": "kafka.strimzi.io",
        "scope": "Namespaced",
        "names": {
            "kind": "KafkaConnector",
            "listKind": "KafkaConnectorList",
            "singular": "kafkaconnector",
            "plural": "kafkaconnectors",
        },
        "versions": [
            {
                "name": "v1beta2",
                "served": True,
                "storage": True,
                "subresources": {
                    "status": {},
                    "scale": {"specReplicasPath": ".spec.tasksMax", "statusReplicasPath": ".status.tasksMax"},
                },
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {"type": "object", "properties": _SPEC},
                            "status": {"type": "object", "properties": _STATUS},
                        },
                    }
                },
            }
        ],
    },
}


@dataclass
class Strimzi:
    """Strimzi's operator for one `KafkaConnect`. It acts only when `step` is called.

    Attributes:
        failing: the stack traces of failed tasks, by the names of the resource and the task.
        refused: the messages of Connect about resources that it refuses.
        restarted: the restarts in order: the resource, and the task or an empty string for the connector.
    """

    api: Any
    failing: dict[tuple[str, int], str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    restarted: list[tuple[str, str]] = field(default_factory=list)

    def step(self) -> None:
        """Restart connectors and tasks that annotations name, and write the status of each resource."""
        for resource in self.api.list(KAFKA_CONNECTOR, NAMESPACE, selector=f"{strimzi.CLUSTER}={CLUSTER}"):
            self._restart(resource)
            status = self._status(resource)
            named = {key: resource["metadata"][key] for key in ("name", "namespace")}
            body = {"apiVersion": strimzi.API_VERSION, "kind": strimzi.KIND, "metadata": named, "status": status}
            self.api.apply(body, subresource="status", manager="strimzi-cluster-operator")

    def _restart(self, resource: Document) -> None:
        name, annotations = resource["metadata"]["name"], resource["metadata"].get("annotations") or {}
        for annotation in (strimzi.RESTART, strimzi.RESTART_TASK):
            if annotation in annotations:
                task = annotations[annotation] if annotation == strimzi.RESTART_TASK else ""
                self.restarted.append((name, task))
                self.failing.pop((name, int(task or -1)), None)
                self.api.merge(KAFKA_CONNECTOR, NAMESPACE, name, {"metadata": {"annotations": {annotation: None}}})

    def _status(self, resource: Document) -> Document:
        name, spec = resource["metadata"]["name"], resource["spec"]
        seen = {"observedGeneration": resource["metadata"]["generation"], "tasksMax": spec["tasksMax"]}
        if name in self.refused:
            not_ready = {
                "type": "NotReady",
                "status": "True",
                "reason": "ConnectRestException",
                "message": self.refused[name],
            }
            return {**seen, "conditions": [not_ready]}
        state = {"paused": "PAUSED", "stopped": "STOPPED"}.get(strimzi.requested_state(resource), "RUNNING")
        worker = {"worker_id": "10.0.0.1:8083"}
        tasks = []
        for task in range(spec["tasksMax"] if state != "STOPPED" else 0):
            trace = self.failing.get((name, task)) if state == "RUNNING" else None
            failed = {"state": "FAILED", "trace": trace} if trace else {"state": state}
            tasks.append({"id": task, **worker, **failed})
        reported = {"name": name, "type": "source", "connector": {"state": state, **worker}, "tasks": tasks}
        ready = {"type": "Ready", "status": "True"}
        if any(task["state"] == "FAILED" for task in tasks):
            ready = {"type": "NotReady", "status": "True", "reason": "Throwable", "message": "tasks have failed"}
        return {**seen, "conditions": [ready], "connectorStatus": reported}


class MemoryApi:
    """The part of `Api` that connectors of Strimzi use, for one kind in one namespace.

    Attributes:
        served: whether Strimzi's CRD exists.
        failure: the error that each call raises, or None if calls succeed.
        writes: descriptions of all writes, except those of a status, in order.
    """

    def __init__(self) -> None:
        self.served = True
        self.failure: Exception | None = None
        self.writes: list[str] = []
        self.items: dict[str, Document] = {}

    def take_writes(self) -> list[str]:
        """Return the writes since the last call."""
        writes, self.writes = self.writes, []
        return writes

    def list(
        self, kind: Kind, namespace: str | None = None, *, selector: str = "", metadata_only: bool = False
    ) -> list[Document]:
        """Return the resources."""
        self._called()
        if not self.served:
            raise NotFound(Reason.REFUSED, "the server could not find the requested resource (404)")
        key, _, value = selector.partition("=")
        items = [
            item for item in self.items.values() if not key or item["metadata"].get("labels", {}).get(key) == value
        ]
        return [{"metadata": item["metadata"]} if metadata_only else copy.deepcopy(item) for item in items]

    def get(self, kind: Kind, namespace: str | None, name: str, *, uncached: bool = False) -> Document | None:
        """Return a resource."""
        self._called()
        return copy.deepcopy(self.items.get(name)) if self.served else None

    def create(self, body: Document) -> Document:
        """Create a resource."""
        name = self._wrote("create", body["metadata"]["name"])
        if name in self.items:
            raise Conflict(Reason.WAITING, f"{name} already exists")
        return self._put({**body, "metadata": {**body["metadata"], "generation": 1, "resourceVersion": "1"}})

    def replace(self, body: Document) -> Document:
        """Replace a resource, except for its status."""
        name = self._wrote("replace", body["metadata"]["name"])
        return self._put({**body, "status": self.items[name].get("status", {})})

    def merge(self, kind: Kind, namespace: str | None, name: str, patch: Mapping[str, Any]) -> Document:
        """Change members of a resource."""
        self._wrote(f"merge {json.dumps(patch)} into", name)
        if name not in self.items:
            raise NotFound(Reason.REFUSED, f"{name} not found")
        return self._put(_merged(self.items[name], patch))

    def apply(self, body: Document, *, subresource: str = "", manager: str = "") -> Document:
        """Write the status of a resource."""
        self._called()
        assert subresource == "status"
        self.items[body["metadata"]["name"]]["status"] = copy.deepcopy(body["status"])
        return body

    def delete(self, kind: Kind, namespace: str | None, name: str, *, uid: str = "") -> bool:
        """Delete a resource."""
        self._wrote("delete", name)
        return self.items.pop(name, None) is not None

    def _put(self, body: Document) -> Document:
        """Store a resource. As on the API server, a changed spec gets a new generation."""
        name = body["metadata"]["name"]
        stored = self.items.get(name)
        number = int(stored["metadata"]["generation"]) if stored else 0
        number += 1 if stored is None or stored["spec"] != body["spec"] else 0
        self.items[name] = copy.deepcopy({**body, "metadata": {**body["metadata"], "generation": number}})
        return copy.deepcopy(self.items[name])

    def _wrote(self, what: str, name: str) -> str:
        self._called()
        self.writes.append(f"{what} {name}")
        return name

    def _called(self) -> None:
        if self.failure is not None:
            raise self.failure


def _merged(old: Any, patch: Mapping[str, Any]) -> Document:
    merged = dict(old) if isinstance(old, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value) if isinstance(value, Mapping) else value
    return merged


def memory_api() -> tuple[MemoryApi, Api]:
    """Return the same object twice: for the test, and typed as the actuator needs it."""
    api: Any = MemoryApi()
    return api, api
