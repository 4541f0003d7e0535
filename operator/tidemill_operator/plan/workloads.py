"""Plan the workloads of a pipeline, for a cluster or for one machine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from tidemill_contract.resource.inputs.mqtt import MqttSpec
from tidemill_contract.resource.spec import PipelineSpec, PythonSpec, ResourcesSpec, ScaledComponent
from tidemill_contract.runtime import PipelineConfig
from tidemill_operator.plan.model import Component, Reference, Replay, Workload
from tidemill_operator.plan.restarts import revision, stage_revision
from tidemill_operator.settings import Platform

SHARED_INGEST, SHARED_API = "tidemill-ingest", "tidemill-api"
_MODULES: dict[Component, str] = {
    "processor": "tidemill_processor",
    "replay": "tidemill_processor",
    "stage": "tidemill_processor.stage",
    "ingest": "tidemill_ingest",
    "api": "tidemill_api",
    "mqtt": "tidemill_ingest.mqtt",
}
_HTTP_COMPONENTS: tuple[Component, ...] = ("ingest", "api")
_SECRETS: dict[Component, tuple[str, ...]] = {
    "processor": ("writer.json",),
    "replay": ("writer.json",),
    "stage": (),
    "ingest": ("api-keys.json",),
    "api": ("api-keys.json", "reader.json"),
    "mqtt": (),
}


def desired_workloads(
    config: PipelineConfig,
    platform: Platform,
    decided: Mapping[ScaledComponent, int] | None = None,
    replay: Replay | None = None,
) -> tuple[Workload, ...]:
    """Return the pipeline's workloads, including shared workloads."""
    spec = config.spec
    replicas = decided or {}
    processors = _workload(config, platform, "processor", own=True, resources=_resources(spec.processor.resources))
    processors = _with_replicas(processors, spec, replicas, fixed=spec.processor.replicas)
    workloads = [processors]
    if replay is not None:
        workloads.append(_replay(config, platform, replay, _replay_replicas(config, processors.replicas, replay)))
    if (python := spec.transform.python) is not None:
        workloads.append(_with_replicas(_stage(config, platform, python), spec, replicas, fixed=python.replicas))
    if config.takes_http:
        workloads.append(_workload(config, platform, "ingest"))
    if spec.source.mqtt is not None:
        workloads.append(_bridge(config, platform, spec.source.mqtt))
    if spec.api.enabled:
        workloads.append(_workload(config, platform, "api", own=spec.api.dedicated))
    return tuple(workloads)


def _bridge(config: PipelineConfig, platform: Platform, spec: MqttSpec) -> Workload:
    """Return the bridge from an MQTT broker. Only one bridge can be connected at a time."""
    text = f"{config.events_topic}\n{spec.model_dump_json()}"
    return replace(
        _workload(config, platform, "mqtt", own=True),
        secrets={},
        mqtt_secret=spec.secret_ref.name if spec.secret_ref is not None else "",
        egress_ports=(spec.port,),
        revision=hashlib.sha256(text.encode()).hexdigest()[:16],
        is_singleton=True,
    )


def _replay_replicas(config: PipelineConfig, processors: int, replay: Replay) -> int:
    """Return how many processors a replay has.

    A replay with a rate limit has only one processor, which enforces the limit.
    """
    if config.spec.suspend:
        return 0
    if replay.rate:
        return 1
    return max(1, min(processors, config.spec.source.topic.partitions or 1))


def _replay(config: PipelineConfig, platform: Platform, replay: Replay, replicas: int) -> Workload:
    workload = _workload(
        config,
        platform,
        "replay",
        own=True,
        replicas=replicas,
        resources=_resources(config.spec.processor.resources),
    )
    environment = {
        "TIDEMILL_READER": replay.reader,
        "TIDEMILL_START_FROM": replay.start_from,
        "TIDEMILL_RATE": str(replay.rate),
    }
    return replace(workload, environment={**workload.environment, **environment})


def _stage(config: PipelineConfig, platform: Platform, python: PythonSpec) -> Workload:
    workload = _workload(
        config,
        platform,
        "stage",
        own=True,
        resources=_resources(python.resources),
    )
    return replace(
        workload,
        secrets={},
        revision=stage_revision(config),
        code=python.config_map or "",
        image=python.image or "",
    )


def _with_replicas(
    workload: Workload, spec: PipelineSpec, decided: Mapping[ScaledComponent, int], *, fixed: int
) -> Workload:
    component: ScaledComponent = "stage" if workload.component == "stage" else "processor"
    scaling = spec.scaling_of(component)
    by_lag = scaling is not None and scaling.mode == "lag"
    if spec.suspend:
        replicas = 0
    elif scaling is None:
        replicas = fixed
    elif by_lag and component in decided:
        replicas = decided[component]
    else:
        replicas = max(1, scaling.min_replicas)
    external = scaling is not None and not by_lag and not spec.suspend
    return replace(workload, replicas=replicas, scaled=by_lag, externally_scaled=external)


def _workload(
    config: PipelineConfig,
    platform: Platform,
    component: Component,
    *,
    own: bool = False,
    replicas: int = 1,
    resources: Mapping[str, Mapping[str, str]] | None = None,
) -> Workload:
    shared = {"ingest": SHARED_INGEST, "api": SHARED_API}
    environment = {"TIDEMILL_NAMESPACE": config.namespace}
    if own:
        environment["TIDEMILL_PIPELINE"] = config.name
    processes = component in ("processor", "replay")
    registry = config.spec.source.record_format.registry if processes else None
    reference = registry.secret_ref if registry is not None else None
    kafka = config.spec.source.kafka if processes else None
    ports = {*(registry.ports if registry is not None else ()), *(kafka.ports if kafka is not None else ())}
    return Workload(
        name=f"{config.name}-{component}" if own else shared[component],
        namespace=config.namespace,
        component=component,
        pipeline=config.name if own else None,
        module=_MODULES[component],
        replicas=replicas,
        environment=environment,
        configs={f"{config.name}.json": config.to_json()},
        secrets={config.name: _SECRETS[component]},
        ports=_ports(component, 0 if own else platform.ports.get(component, 0)),
        resources=resources or {},
        revision=revision(config) if processes else "",
        secret_sources=_webhook_secrets(config) if component == "ingest" else {},
        registry_secret=reference.name if reference is not None else "",
        kafka_secret=kafka.secret if kafka is not None else "",
        lookups=_lookups(config) if processes else {},
        egress_ports=tuple(sorted(ports)),
    )


def _webhook_secrets(config: PipelineConfig) -> dict[str, tuple[str, str]]:
    return {
        webhook.secret_file: (webhook.secret_ref.name, webhook.secret_ref.key)
        for webhook in config.spec.source.webhooks or ()
    }


def _lookups(config: PipelineConfig) -> dict[str, Reference]:
    references = {}
    for lookup in config.spec.lookups or ():
        if lookup.source.config_map is not None:
            references[lookup.name] = Reference("configMap", lookup.source.config_map)
        elif lookup.source.secret_ref is not None:
            references[lookup.name] = Reference("secret", lookup.source.secret_ref.name)
    return references


def _ports(component: Component, wanted: int) -> dict[str, int]:
    return {"http": wanted, "status": 0} if component in _HTTP_COMPONENTS else {"status": wanted}


def _resources(spec: ResourcesSpec) -> dict[str, dict[str, str]]:
    dumped = spec.model_dump(exclude_none=True)
    return {kind: amounts for kind, amounts in dumped.items() if amounts}
