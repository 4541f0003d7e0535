"""Convert connectors to `KafkaConnector` resources of Strimzi, and read Strimzi's reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tidemill_operator.plan.connect import states
from tidemill_operator.plan.connect.states import LiveConnector, LiveTask, mask_secrets
from tidemill_operator.plan.render import object_metadata
from tidemill_operator.plan.render.object_metadata import Manifest

API_VERSION, KIND, PLURAL = "kafka.strimzi.io/v1beta2", "KafkaConnector", "kafkaconnectors"
CLUSTER = "strimzi.io/cluster"
RESTART, RESTART_TASK = "strimzi.io/restart", "strimzi.io/restart-task"
_NAME, _CLASS, _TASKS = "name", "connector.class", "tasks.max"
_OWN = ("class", "tasksMax", "config", "state")
_LONGEST_REFUSAL = 600


def resource_name(name: str) -> str:
    """Return the name of a connector's resource, with hyphens instead of underscores."""
    pipeline, _, own = name.rpartition(".")
    # Kubernetes names cannot end with hyphens. Therefore the number of underscores at the end is written: `orders__`
    # becomes `orders.2`.
    last = len(own) - len(own.rstrip("_"))
    return f"{pipeline}.{own.rstrip('_').replace('_', '-')}" + (f".{last}" if last else "")


def connector_name(resource: str) -> str:
    """Return the name of the connector that belongs to a resource."""
    namespace, _, rest = resource.partition(".")
    pipeline, _, own = rest.partition(".")
    own, _, last = own.partition(".")
    return f"{namespace}.{pipeline}.{own.replace('-', '_')}{'_' * int(last) if last.isdigit() else ''}"


def manifest(name: str, config: Mapping[str, str], *, namespace: str, cluster: str, state: str) -> Manifest:
    """Return a connector's resource."""
    labels = {**object_metadata.MANAGED_LABELS, object_metadata.COMPONENT: "connector", CLUSTER: cluster}
    spec = {
        "class": config[_CLASS],
        "tasksMax": int(config[_TASKS]),
        "config": {key: text for key, text in config.items() if key not in (_NAME, _CLASS, _TASKS)},
        "state": state,
    }
    metadata = {"name": resource_name(name), "namespace": namespace, "labels": labels}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}


def read_connector(name: str, resource: Mapping[str, Any], *, cluster: str) -> LiveConnector:
    """Return a resource's connector, with the state reported by Strimzi."""
    status = resource.get("status") or {}
    reported = status.get("connectorStatus") or {}
    connector = reported.get("connector") or {}
    tasks = [
        LiveTask(int(task.get("id", 0)), str(task.get("state", "")), str(task.get("trace") or ""))
        for task in reported.get("tasks") or ()
    ]
    pending = _pending(name, resource)
    return LiveConnector(
        name,
        _config(name, resource, cluster),
        str(connector.get("state") or ""),
        tuple(sorted(tasks, key=lambda task: task.id)),
        str(connector.get("trace") or ""),
        requested_state=requested_state(resource).upper(),
        pending=pending,
        refusal="" if pending or connector else _refusal(status),
    )


def requested_state(resource: Mapping[str, Any]) -> str:
    """Return the requested state of a resource, which is `running`, `paused` or `stopped`."""
    spec = resource.get("spec") or {}
    return str(spec.get("state") or ("paused" if spec.get("pause") is True else "running"))


def failed_tasks(resource: Mapping[str, Any]) -> list[int]:
    """Return the numbers of the failed tasks. If the connector itself failed, the list is empty."""
    reported = (resource.get("status") or {}).get("connectorStatus") or {}
    if (reported.get("connector") or {}).get("state") == states.FAILED:
        return []
    return sorted(int(task["id"]) for task in reported.get("tasks") or () if task.get("state") == states.FAILED)


def _config(name: str, resource: Mapping[str, Any], cluster: str) -> dict[str, str]:
    """Return the config of a resource in the form of Kafka Connect.

    Members not written by Tidemill are included. A comparison with the desired config then finds these members.
    """
    spec = resource.get("spec") or {}
    config = {key: _text(value) for key, value in (spec.get("config") or {}).items() if value is not None}
    config |= {_NAME: name, _CLASS: str(spec.get("class", "")), _TASKS: str(spec.get("tasksMax", ""))}
    config |= {f"spec.{member}": _text(value) for member, value in spec.items() if member not in _OWN}
    label = (resource["metadata"].get("labels") or {}).get(CLUSTER, "")
    return config | ({} if label == cluster else {f"label {CLUSTER}": label})


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _pending(name: str, resource: Mapping[str, Any]) -> str:
    status, generation = resource.get("status") or {}, int(resource["metadata"].get("generation", 1))
    if not status:
        return f"Strimzi has not reported connector {name} yet"
    if int(status.get("observedGeneration", generation)) < generation:
        return f"Strimzi has not applied the newest resource of connector {name} yet"
    return ""


def _refusal(status: Mapping[str, Any]) -> str:
    for condition in status.get("conditions") or ():
        if condition.get("type") == "NotReady" and condition.get("status") == "True":
            message = mask_secrets(f"{condition.get('reason', '')}: {condition.get('message', '')}")
            return f"Strimzi reports {message[:_LONGEST_REFUSAL]}"
    return ""
