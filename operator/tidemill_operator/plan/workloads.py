"""The desired workloads of a pipeline. The workloads are the same for both runtimes.

The runtime adds addresses, paths and ports of the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tidemill_contract.resource.spec import ResourcesSpec
from tidemill_contract.runtime import PipelineConfig
from tidemill_operator.plan.model import Component, Replay, Workload
from tidemill_operator.plan.restarts import revision
from tidemill_operator.settings import Platform

SHARED_INGEST, SHARED_API = "tidemill-ingest", "tidemill-api"
_MODULES: dict[Component, str] = {
    "processor": "tidemill_processor",
    "replay": "tidemill_processor",
    "ingest": "tidemill_ingest",
    "api": "tidemill_api",
}
_CALLED: tuple[Component, ...] = ("ingest", "api")
_SECRETS: dict[Component, tuple[str, ...]] = {
    "processor": ("writer.json",),
    "replay": ("writer.json",),
    "ingest": ("api-keys.json",),
    "api": ("api-keys.json", "reader.json"),
}


def desired_workloads(
    config: PipelineConfig, platform: Platform, scaled: int | None = None, replay: Replay | None = None
) -> tuple[Workload, ...]:
    """Return the pipeline's processors, and its ingest and API, which may be shared.

    Args:
        config: the resolved config.
        platform: has the ports.
        scaled: number of processors that scaling has decided on, or None if nothing is decided.
        replay: the current replay, which has its own processors.
    """
    spec = config.spec
    found = [
        _workload(
            config,
            platform,
            "processor",
            own=True,
            replicas=_processors(config, scaled),
            resources=_resources(spec.processor.resources),
            scaled_elsewhere=_external(config),
            scaled=_by_lag(config),
        )
    ]
    if replay is not None:
        found.append(_replay(config, platform, replay, _replaying(config, scaled, replay)))
    if spec.takes_http:
        found.append(_workload(config, platform, "ingest"))
    if spec.api.enabled:
        found.append(_workload(config, platform, "api", own=spec.api.dedicated))
    return tuple(found)


def _replaying(config: PipelineConfig, scaled: int | None, replay: Replay) -> int:
    """Return the number of a replay's processors.

    The result is the number of live processors, or 1 if the replay has a rate, because one process enforces the rate.
    """
    if config.spec.suspend:
        return 0
    if replay.rate:
        return 1
    return max(1, min(_processors(config, scaled), config.spec.source.topic.partitions or 1))


def _replay(config: PipelineConfig, platform: Platform, replay: Replay, replicas: int) -> Workload:
    workload = _workload(
        config,
        platform,
        "replay",
        own=True,
        replicas=replicas,
        resources=_resources(config.spec.processor.resources),
    )
    told = {
        "TIDEMILL_READER": replay.reader,
        "TIDEMILL_START_FROM": replay.start_from,
        "TIDEMILL_RATE": str(replay.rate),
    }
    return replace(workload, environment={**workload.environment, **told})


def _processors(config: PipelineConfig, scaled: int | None) -> int:
    processor = config.spec.processor
    if config.spec.suspend:
        return 0
    if processor.scaling is None:
        return processor.replicas
    if scaled is not None and processor.scaling.mode == "lag":
        return scaled
    return max(1, processor.scaling.min_replicas)


def _external(config: PipelineConfig) -> bool:
    scaling = config.spec.processor.scaling
    return scaling is not None and scaling.mode == "external" and not config.spec.suspend


def _by_lag(config: PipelineConfig) -> bool:
    scaling = config.spec.processor.scaling
    return scaling is not None and scaling.mode == "lag"


def _workload(
    config: PipelineConfig,
    platform: Platform,
    component: Component,
    *,
    own: bool = False,
    replicas: int = 1,
    resources: Mapping[str, Mapping[str, str]] | None = None,
    scaled_elsewhere: bool = False,
    scaled: bool = False,
) -> Workload:
    shared = {"ingest": SHARED_INGEST, "api": SHARED_API}
    environment = {"TIDEMILL_NAMESPACE": config.namespace}
    if own:
        environment["TIDEMILL_PIPELINE"] = config.name
    processes = component in ("processor", "replay")
    registry = config.spec.source.written.registry if processes else None
    reference = registry.secret_ref if registry is not None else None
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
        scaled_elsewhere=scaled_elsewhere,
        scaled=scaled,
        revision=revision(config) if processes else "",
        registry_secret=reference.name if reference is not None else "",
        reached_ports=registry.ports if registry is not None else (),
    )


def _ports(component: Component, wanted: int) -> dict[str, int]:
    """Return the ports. Ingest and API have a port for clients. Every workload has a port for probes and metrics."""
    return {"http": wanted, "status": 0} if component in _CALLED else {"status": wanted}


def _resources(spec: ResourcesSpec) -> dict[str, dict[str, str]]:
    dumped = spec.model_dump(exclude_none=True)
    return {kind: amounts for kind, amounts in dumped.items() if amounts}
