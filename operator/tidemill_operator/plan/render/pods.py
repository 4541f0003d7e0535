"""Renders the pod of a workload for the Pod Security level `restricted`.

Files are mounted as volumes, and settings are environment variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tidemill_operator.cluster_settings import Placement
from tidemill_operator.plan.model import Component, Probe, Workload
from tidemill_operator.plan.render import marks

PORTS: Mapping[Component, int] = {"ingest": 8080, "api": 8081}
"""Ports for clients. Probes and metrics use another port."""
STATUS_PORTS: Mapping[Component, int] = {"processor": 8080, "replay": 8080, "ingest": 8082, "api": 8082}
CONFIG_DIR, SECRETS_DIR = "/etc/tidemill/pipelines", "/etc/tidemill/secrets"
# The files of the Secret with connections, and the variable that names each file.
_FILES = {
    "kafka.json": "TIDEMILL_KAFKA_CONFIG",
    "postgres-ca.crt": "TIDEMILL_POSTGRES_CA",
    "redis-ca.crt": "TIDEMILL_REDIS_CA",
}
_RESILIENCE_DIR, _CONNECTIONS_DIR = "/etc/tidemill/resilience", "/etc/tidemill/connections"
_REGISTRY_DIR = "/etc/tidemill/registry"
_USER = 10_001
_SECRET_MODE = 0o440
# The time that a pod needs to commit the last batch, or to answer accepted requests.
_GRACE_SECONDS: Mapping[Component, int] = {"processor": 60, "replay": 60, "ingest": 45, "api": 45}
# Starting may take long, because importing modules is slow with a small share of a core.
_START_SECONDS, _START_PERIOD = 120, 2
_PROCESSOR: Mapping[str, Mapping[str, str]] = {
    "requests": {"cpu": "100m", "memory": "256Mi"},
    "limits": {"memory": "1Gi"},
}
_RESOURCES: Mapping[Component, Mapping[str, Mapping[str, str]]] = {
    "processor": _PROCESSOR,
    "replay": _PROCESSOR,
    "ingest": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
    "api": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "512Mi"}},
}
_DIVISOR: Mapping[str, int] = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


@dataclass(frozen=True)
class Revisions:
    """Hashes of files that a pod only reads at its start. If a hash changes, the pods are replaced.

    Attributes:
        credentials: hash of a processor's login.
        connections: hash of the Secret with addresses and client settings.
    """

    credentials: str = ""
    connections: str = ""


def pod_template(workload: Workload, placement: Placement, revisions: Revisions) -> dict[str, Any]:
    """Return the template of a workload's pods."""
    labels = {**marks.OURS, marks.COMPONENT: workload.component, marks.WORKLOAD: workload.name}
    if workload.pipeline is not None:
        labels |= {marks.INSTANCE: workload.pipeline, marks.PIPELINE: workload.pipeline}
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
        "containers": [_container(workload, placement)],
        "volumes": _volumes(workload, placement),
    }
    if placement.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in placement.pull_secrets]
    return {"metadata": {"labels": labels, "annotations": _annotations(workload, placement, revisions)}, "spec": spec}


def selector(workload: Workload) -> dict[str, str]:
    """Return the labels that only this workload's pods have."""
    return {marks.NAME: "tidemill", marks.WORKLOAD: workload.name}


def _annotations(workload: Workload, placement: Placement, revisions: Revisions) -> dict[str, str]:
    """Return hashes of the files that a pod only reads at its start, so that a change replaces the pod.

    Ingest and API read changed configs and credentials while they run. So only processors and replays get hashes of
    their config and credentials.
    """
    found = {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(STATUS_PORTS[workload.component]),
        "prometheus.io/path": "/metrics",
    }
    if workload.component in ("processor", "replay"):
        found["tidemill.dev/config"] = workload.revision
        found["tidemill.dev/credentials"] = revisions.credentials
    if placement.resilience:
        found["tidemill.dev/resilience"] = marks.digest(placement.resilience)
    if placement.connections:
        found["tidemill.dev/connections"] = revisions.connections
    return {name: value for name, value in found.items() if value}


def _container(workload: Workload, placement: Placement) -> dict[str, Any]:
    mounts = [
        {"name": "pipelines", "mountPath": CONFIG_DIR, "readOnly": True},
        {"name": "secrets", "mountPath": SECRETS_DIR, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - an emptyDir of the pod
    ]
    if placement.resilience:
        mounts.append({"name": "resilience", "mountPath": _RESILIENCE_DIR, "readOnly": True})
    if _files(placement):
        mounts.append({"name": "connections", "mountPath": _CONNECTIONS_DIR, "readOnly": True})
    if workload.registry_secret:
        mounts.append({"name": "registry", "mountPath": _REGISTRY_DIR, "readOnly": True})
    return {
        "name": workload.component,
        "image": placement.images["processor" if workload.component == "replay" else workload.component],
        "imagePullPolicy": placement.pull_policy,
        "command": ["python", "-m", workload.module],
        "env": _environment(workload, placement),
        "ports": [
            {"name": name, "containerPort": ports[workload.component], "protocol": "TCP"}
            for name, ports in (("http", PORTS), ("status", STATUS_PORTS))
            if workload.component in ports
        ],
        "resources": _resources(workload),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "startupProbe": _probe(workload.liveness, period=_START_PERIOD, failures=_START_SECONDS // _START_PERIOD),
        "readinessProbe": _probe(workload.readiness, failures=2),
        "livenessProbe": _probe(workload.liveness, failures=6),
        "volumeMounts": mounts,
    }


def _environment(workload: Workload, placement: Placement) -> list[dict[str, Any]]:
    called, status = PORTS.get(workload.component), STATUS_PORTS[workload.component]
    plain = {
        **placement.environment,
        **(placement.called if called else {}),
        **(placement.ingest if workload.component == "ingest" else {}),
        **(placement.api if workload.component == "api" else {}),
        **workload.environment,
        "TIDEMILL_HOST": "0.0.0.0",  # noqa: S104 - a pod's own address
        "TIDEMILL_PORT": str(called or status),
        "TIDEMILL_STATUS_PORT": str(status) if called else "",
        "TIDEMILL_CONFIG_DIR": CONFIG_DIR,
        "TIDEMILL_SECRETS_DIR": SECRETS_DIR,
    }
    if placement.resilience:
        plain["TIDEMILL_RESILIENCE_FILE"] = f"{_RESILIENCE_DIR}/resilience.yaml"
    if workload.registry_secret:
        plain["TIDEMILL_REGISTRY_DIR"] = _REGISTRY_DIR
    plain |= {_FILES[name]: f"{_CONNECTIONS_DIR}/{name}" for name in _files(placement)}
    found: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in sorted(plain.items()) if value]
    # A restarted container keeps the name of its pod, and so the partitions assigned to that name.
    found.append({"name": "TIDEMILL_INSTANCE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}})
    if "redis-url" in placement.connections:
        reference = {"name": marks.CONNECTIONS, "key": "redis-url"}
        found.append({"name": "TIDEMILL_REDIS_URL", "valueFrom": {"secretKeyRef": reference}})
    return found


def _files(placement: Placement) -> list[str]:
    return [name for name in _FILES if name in placement.connections]


def _volumes(workload: Workload, placement: Placement) -> list[dict[str, Any]]:
    found = [
        {"name": "pipelines", **_pipelines(workload)},
        {"name": "secrets", **_secrets(workload)},
        {"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}},
    ]
    if placement.resilience:
        found.append({"name": "resilience", "configMap": {"name": marks.RESILIENCE}})
    if files := _files(placement):
        only = [{"key": name, "path": name} for name in files]
        secret = {"secretName": marks.CONNECTIONS, "items": only, "defaultMode": _SECRET_MODE}
        found.append({"name": "connections", "secret": secret})
    if workload.registry_secret:
        # The Secret is optional: without it the pods start, and their health says that the registry refuses them.
        secret = {"secretName": workload.registry_secret, "optional": True, "defaultMode": _SECRET_MODE}
        found.append({"name": "registry", "secret": secret})
    return found


def _pipelines(workload: Workload) -> dict[str, Any]:
    if workload.pipeline is not None:
        return {"configMap": {"name": marks.config_map(workload.pipeline)}}
    # The volume's sources do not depend on the pipelines, so that a new pipeline does not restart the shared ingest.
    sources = [{"configMap": {"name": name, "optional": True}} for name in marks.shared_configs()]
    return {"projected": {"sources": sources}}


def _secrets(workload: Workload) -> dict[str, Any]:
    if workload.pipeline is None:
        name = marks.shared_secret(workload.component)
        return {"secret": {"secretName": name, "optional": True, "defaultMode": _SECRET_MODE}}
    files = workload.secrets.get(workload.pipeline, ())
    items = [{"key": file, "path": f"{workload.pipeline}/{file}"} for file in sorted(files)]
    name = marks.credentials(workload.pipeline)
    return {"secret": {"secretName": name, "items": items, "defaultMode": _SECRET_MODE}}


def _probe(probe: Probe, *, failures: int, period: int | None = None) -> dict[str, Any]:
    return {
        "httpGet": {"path": probe.path, "port": probe.port},
        "periodSeconds": period or probe.period_seconds,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _resources(workload: Workload) -> dict[str, dict[str, str]]:
    """Return the resources in the spec, or else the component's defaults. A request never exceeds its limit."""
    found = {kind: dict(amounts) for kind, amounts in _RESOURCES[workload.component].items()}
    asked = workload.resources
    for kind, amounts in asked.items():
        found.setdefault(kind, {}).update(amounts)
    for name in ("cpu", "memory"):
        request, limit = found["requests"].get(name), found["limits"].get(name)
        if request is None or limit is None or quantity(request) <= quantity(limit):
            continue
        if name in asked.get("requests", {}):
            found["limits"][name] = request
        else:
            found["requests"][name] = limit
    return found


def quantity(text: str) -> float:
    """Parse a Kubernetes quantity, e.g. `500m` as 0.5.

    Raises:
        ValueError: the text is not a valid quantity.
    """
    number = text.rstrip("kmGMKi")
    unit = text[len(number) :]
    return float(number) / 1000 if unit == "m" else float(number) * _DIVISOR[unit]
