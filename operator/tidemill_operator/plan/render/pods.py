"""Render the pod of a workload for the Pod Security level `restricted`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tidemill_operator.cluster_settings import Placement
from tidemill_operator.plan.model import Component, Probe, Workload
from tidemill_operator.plan.render import object_metadata

PORTS: Mapping[Component, int] = {"ingest": 8080, "api": 8081}
"""The ports for clients. Probes and metrics use another port."""
STATUS_PORTS: Mapping[Component, int] = {
    "processor": 8080, "replay": 8080, "stage": 8080, "ingest": 8082, "api": 8082, "mqtt": 8080
}  # fmt: skip
CONFIG_DIR, SECRETS_DIR = "/etc/tidemill/pipelines", "/etc/tidemill/secrets"
# The files of the Secret with connection settings, and the environment variables with the files' paths.
_FILES = {
    "kafka.json": "TIDEMILL_KAFKA_CONFIG",
    "postgres-ca.crt": "TIDEMILL_POSTGRES_CA",
    "redis-ca.crt": "TIDEMILL_REDIS_CA",
}
_RESILIENCE_DIR, _CONNECTIONS_DIR = "/etc/tidemill/resilience", "/etc/tidemill/connections"
_CODE_DIR, _LOOKUPS_DIR = "/etc/tidemill/stage", "/etc/tidemill/lookups"
# A Python stage runs user code. So the stage's pods get neither addresses nor logins of Postgres and Redis.
_NOT_FOR_CODE = ("TIDEMILL_POSTGRES_", "TIDEMILL_REDIS_")
# For each kind of Secret: the volume's name, and the environment variable for its folder.
_REGISTRY, _SOURCE_KAFKA = ("registry", "TIDEMILL_REGISTRY_DIR"), ("source-kafka", "TIDEMILL_SOURCE_KAFKA_DIR")
_MQTT = ("mqtt", "TIDEMILL_MQTT_DIR")
_USER = 10_001
SECRET_MODE = 0o440
CONTAINER_SECURITY: Mapping[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
# Seconds in which a terminating pod can commit its last batch, or answer accepted requests.
_GRACE_SECONDS: Mapping[Component, int] = {
    "processor": 60, "replay": 60, "stage": 60, "ingest": 45, "api": 45, "mqtt": 30, "connect": 60
}  # fmt: skip
# Importing modules is slow with a small share of a core, so a start may take long.
_START_SECONDS, _START_PERIOD = 120, 2
_PROCESSOR: Mapping[str, Mapping[str, str]] = {
    "requests": {"cpu": "100m", "memory": "256Mi"},
    "limits": {"memory": "1Gi"},
}
_RESOURCES: Mapping[Component, Mapping[str, Mapping[str, str]]] = {
    "processor": _PROCESSOR,
    "replay": _PROCESSOR,
    "stage": _PROCESSOR,
    "ingest": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
    "api": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "512Mi"}},
    "mqtt": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
}
_IMAGES: Mapping[Component, Component] = {"replay": "processor", "stage": "processor", "mqtt": "ingest"}
"""For each component without its own image, the component whose image it uses."""
_DIVISOR: Mapping[str, int] = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


@dataclass(frozen=True)
class Revisions:
    """Hashes of files that a pod reads only at its start. If a hash changes, Kubernetes replaces the pods."""

    credentials: str = ""
    connections: str = ""


def pod_template(workload: Workload, placement: Placement, revisions: Revisions) -> dict[str, Any]:
    """Return a workload's pod template."""
    annotations = _annotations(workload, placement, revisions)
    container, volumes = _container(workload, placement), _volumes(workload, placement)
    return template(workload, placement, container=container, volumes=volumes, annotations=annotations)


def template(
    workload: Workload,
    placement: Placement,
    *,
    container: dict[str, Any],
    volumes: list[dict[str, Any]],
    annotations: dict[str, str],
) -> dict[str, Any]:
    """Return a template of pods with one container, for the Pod Security level `restricted`."""
    labels = {
        **object_metadata.MANAGED_LABELS,
        object_metadata.COMPONENT: workload.component,
        object_metadata.WORKLOAD: workload.name,
    }
    if workload.pipeline is not None:
        labels |= {object_metadata.INSTANCE: workload.pipeline, object_metadata.PIPELINE: workload.pipeline}
    spec: dict[str, Any] = {
        "serviceAccountName": workload.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _GRACE_SECONDS[workload.component],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector(workload)},
            }
        ],
        "containers": [container],
        "volumes": volumes,
    }
    if placement.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in placement.pull_secrets]
    return {"metadata": {"labels": labels, "annotations": annotations}, "spec": spec}


def selector(workload: Workload) -> dict[str, str]:
    """Return the labels that only this workload's pods have."""
    return {object_metadata.NAME: "tidemill", object_metadata.WORKLOAD: workload.name}


def _annotations(workload: Workload, placement: Placement, revisions: Revisions) -> dict[str, str]:
    annotations = {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(STATUS_PORTS[workload.component]),
        "prometheus.io/path": "/metrics",
    }
    if workload.revision:
        annotations["tidemill.dev/config"] = workload.revision
    if workload.component in ("processor", "replay"):
        annotations["tidemill.dev/credentials"] = revisions.credentials
    if placement.resilience:
        annotations["tidemill.dev/resilience"] = object_metadata.digest(placement.resilience)
    if placement.connections:
        annotations["tidemill.dev/connections"] = revisions.connections
    return {name: value for name, value in annotations.items() if value}


def _container(workload: Workload, placement: Placement) -> dict[str, Any]:
    mounts = [
        {"name": "pipelines", "mountPath": CONFIG_DIR, "readOnly": True},
        *([{"name": "secrets", "mountPath": SECRETS_DIR, "readOnly": True}] if workload.secrets else []),
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - an emptyDir of the pod
    ]
    if placement.resilience:
        mounts.append({"name": "resilience", "mountPath": _RESILIENCE_DIR, "readOnly": True})
    if _files(workload, placement):
        mounts.append({"name": "connections", "mountPath": _CONNECTIONS_DIR, "readOnly": True})
    for (name, _), _ in _references(workload):
        mounts.append({"name": name, "mountPath": f"/etc/tidemill/{name}", "readOnly": True})
    if workload.code:
        mounts.append({"name": "code", "mountPath": _CODE_DIR, "readOnly": True})
    mounts += [
        {"name": volume, "mountPath": folder, "readOnly": True} for volume, folder, _ in _lookups(workload).values()
    ]
    return {
        "name": workload.component,
        "image": workload.image or placement.images[_IMAGES.get(workload.component, workload.component)],
        "imagePullPolicy": placement.pull_policy,
        "command": ["python", "-m", workload.module],
        "env": _environment(workload, placement),
        "ports": [
            {"name": name, "containerPort": ports[workload.component], "protocol": "TCP"}
            for name, ports in (("http", PORTS), ("status", STATUS_PORTS))
            if workload.component in ports
        ],
        "resources": _resources(workload),
        "securityContext": CONTAINER_SECURITY,
        "startupProbe": probe(workload.liveness, period=_START_PERIOD, failures=_START_SECONDS // _START_PERIOD),
        "readinessProbe": probe(workload.readiness, failures=2),
        "livenessProbe": probe(workload.liveness, failures=6),
        "volumeMounts": mounts,
    }


def _environment(workload: Workload, placement: Placement) -> list[dict[str, Any]]:
    http_port, status_port = PORTS.get(workload.component), STATUS_PORTS[workload.component]
    env = {
        **placement.environment,
        **(placement.http_environment if http_port else {}),
        **(placement.ingest if workload.component == "ingest" else {}),
        **(placement.api if workload.component == "api" else {}),
        **workload.environment,
        "TIDEMILL_HOST": "0.0.0.0",  # noqa: S104 - a pod's own address
        "TIDEMILL_PORT": str(http_port or status_port),
        "TIDEMILL_STATUS_PORT": str(status_port) if http_port else "",
        "TIDEMILL_CONFIG_DIR": CONFIG_DIR,
        "TIDEMILL_SECRETS_DIR": SECRETS_DIR if workload.secrets else "",
        "TIDEMILL_STAGE_DIR": _CODE_DIR if workload.code else "",
    }
    if workload.component == "stage":
        env = {name: value for name, value in env.items() if not name.startswith(_NOT_FOR_CODE)}
    if placement.resilience:
        env["TIDEMILL_RESILIENCE_FILE"] = f"{_RESILIENCE_DIR}/resilience.yaml"
    env |= {variable: f"/etc/tidemill/{name}" for (name, variable), _ in _references(workload)}
    if lookups := {name: folder for name, (_, folder, _) in _lookups(workload).items()}:
        env["TIDEMILL_LOOKUP_DIRS"] = json.dumps(lookups, sort_keys=True)
    env |= {_FILES[name]: f"{_CONNECTIONS_DIR}/{name}" for name in _files(workload, placement)}
    variables: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in sorted(env.items()) if value]
    # A restarted container keeps its pod's name. Kafka gives a processor with an unchanged name its partitions back.
    variables.append({"name": "TIDEMILL_INSTANCE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}})
    if "redis-url" in placement.connections and workload.component != "stage":
        reference = {"name": object_metadata.CONNECTIONS, "key": "redis-url"}
        variables.append({"name": "TIDEMILL_REDIS_URL", "valueFrom": {"secretKeyRef": reference}})
    return variables


def _files(workload: Workload, placement: Placement) -> list[str]:
    wanted = ("kafka.json",) if workload.component == "stage" else _FILES
    return [name for name in wanted if name in placement.connections]


def _volumes(workload: Workload, placement: Placement) -> list[dict[str, Any]]:
    volumes = [
        {"name": "pipelines", **_pipelines(workload)},
        *([{"name": "secrets", **_secrets(workload)}] if workload.secrets else []),
        {"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}},
    ]
    if placement.resilience:
        volumes.append({"name": "resilience", "configMap": {"name": object_metadata.RESILIENCE}})
    if files := _files(workload, placement):
        items = [{"key": name, "path": name} for name in files]
        secret = {"secretName": object_metadata.CONNECTIONS, "items": items, "defaultMode": SECRET_MODE}
        volumes.append({"name": "connections", "secret": secret})
    for (name, _), reference in _references(workload):
        # If the optional Secret is missing, the pods start, and their health reports the refused login.
        secret = {"secretName": reference, "optional": True, "defaultMode": SECRET_MODE}
        volumes.append({"name": name, "secret": secret})
    if workload.code:
        # If the optional ConfigMap is missing, the pods start, and their health reports the missing file.
        volumes.append({"name": "code", "configMap": {"name": workload.code, "optional": True}})
    return volumes + [{"name": volume, **content} for volume, _, content in _lookups(workload).values()]


def _lookups(workload: Workload) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Return the volume name, the folder and the volume source of each lookup.

    The whole folder is mounted. After a change of the ConfigMap, a single mounted file (subPath) would stay the same.
    """
    mounts = {}
    for number, (name, reference) in enumerate(workload.lookups.items()):
        content: dict[str, Any] = {"configMap": {"name": reference.name, "optional": True}}
        if reference.kind == "secret":
            content = {"secret": {"secretName": reference.name, "optional": True, "defaultMode": SECRET_MODE}}
        mounts[name] = f"lookup-{number}", f"{_LOOKUPS_DIR}/{name}", content
    return mounts


def _references(workload: Workload) -> list[tuple[tuple[str, str], str]]:
    named = (
        (_REGISTRY, workload.registry_secret),
        (_SOURCE_KAFKA, workload.kafka_secret),
        (_MQTT, workload.mqtt_secret),
    )
    return [(volume, name) for volume, name in named if name]


def _pipelines(workload: Workload) -> dict[str, Any]:
    if workload.pipeline is not None:
        return {"configMap": {"name": object_metadata.config_map_name(workload.pipeline)}}
    # The volume refers to all shared ConfigMaps, even to those that do not exist yet. Otherwise, a new pipeline could
    # change the volume and restart the shared ingest.
    sources = [{"configMap": {"name": name, "optional": True}} for name in object_metadata.shared_config_maps()]
    return {"projected": {"sources": sources}}


def _secrets(workload: Workload) -> dict[str, Any]:
    if workload.pipeline is None:
        name = object_metadata.shared_secret(workload.component)
        return {"secret": {"secretName": name, "optional": True, "defaultMode": SECRET_MODE}}
    files = workload.secrets.get(workload.pipeline, ())
    items = [{"key": file, "path": f"{workload.pipeline}/{file}"} for file in sorted(files)]
    name = object_metadata.credentials_secret(workload.pipeline)
    return {"secret": {"secretName": name, "items": items, "defaultMode": SECRET_MODE}}


def probe(check: Probe, *, failures: int, period: int | None = None) -> dict[str, Any]:
    """Return the manifest of a probe, which fails after `failures` failed checks in a row."""
    return {
        "httpGet": {"path": check.path, "port": check.port},
        "periodSeconds": period or check.period_seconds,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _resources(workload: Workload) -> dict[str, dict[str, str]]:
    """Return the resources from the spec, or else the component's defaults. No resource request exceeds its limit."""
    resources = {kind: dict(amounts) for kind, amounts in _RESOURCES[workload.component].items()}
    given = workload.resources
    for kind, amounts in given.items():
        resources.setdefault(kind, {}).update(amounts)
    for name in ("cpu", "memory"):
        request, limit = resources["requests"].get(name), resources["limits"].get(name)
        if request is None or limit is None or parse_quantity(request) <= parse_quantity(limit):
            continue
        if name in given.get("requests", {}):
            resources["limits"][name] = request
        else:
            resources["requests"][name] = limit
    return resources


def parse_quantity(text: str) -> float:
    """Parse a Kubernetes quantity. The text `500m` gives 0.5.

    Raises:
        ValueError: the text is not a valid quantity.
    """
    number = text.rstrip("kmGMKi")
    unit = text[len(number) :]
    return float(number) / 1000 if unit == "m" else float(number) * _DIVISOR[unit]
