"""Render a workload as manifests, in the order of their creation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tidemill_contract import names
from tidemill_operator.cluster_settings import Placement
from tidemill_operator.plan.model import Workload
from tidemill_operator.plan.render import object_metadata, objects
from tidemill_operator.plan.render.object_metadata import Manifest, OwnerReference
from tidemill_operator.plan.render.pods import PORTS, Revisions


@dataclass(frozen=True)
class Rendering:
    """The manifests of a workload. `own` holds objects that belong only to this pipeline."""

    workload: tuple[Manifest, ...]
    own: tuple[Manifest, ...]


def render(
    workload: Workload,
    *,
    pipeline: str,
    owner: OwnerReference,
    sharing: Iterable[OwnerReference],
    placement: Placement,
    revisions: Revisions,
) -> Rendering:
    """Render one workload."""
    component = workload.component

    def own(name: str) -> Manifest:
        return object_metadata.own_metadata(
            name, workload.namespace, pipeline=pipeline, component=component, owner=owner
        )

    def shared(name: str) -> Manifest:
        return object_metadata.shared_metadata(name, workload.namespace, component=component, owners=sharing)

    metadata = own if workload.pipeline is not None else shared
    name = workload.name
    supporting = [objects.service_account(metadata(name)), objects.disruption_budget(workload, metadata(name))]
    if placement.network_policies:
        supporting.append(objects.network_policy(workload, metadata(name), placement))
    replicas = None if workload.externally_scaled else workload.replicas
    deployment = objects.deployment(workload, metadata(name), placement, revisions, replicas=replicas)
    own_objects = []
    # Replays, stages and MQTT bridges use the ConfigMap of the processors.
    if workload.pipeline is not None and component not in ("replay", "stage", "mqtt"):
        own_objects.append(objects.config_map(own(object_metadata.config_map_name(pipeline)), workload.configs))
    if component in ("ingest", "api"):
        service, port = names.service(pipeline, component), PORTS[component]
        own_objects.append(objects.service(workload, own(service), port))
        if placement.exposure:
            own_objects.append(objects.ingress(workload, own(service), placement.exposure, port, pipeline=pipeline))
    return Rendering((*supporting, deployment), tuple(own_objects))


def common_manifests(
    namespace: str, *, sharing: Iterable[OwnerReference], placement: Placement
) -> tuple[Manifest, ...]:
    """Render the ConfigMap with `resilience.yaml`, which all workloads of a namespace read."""
    if not placement.resilience:
        return ()
    metadata = object_metadata.shared_metadata(
        object_metadata.RESILIENCE, namespace, component="common", owners=sharing
    )
    return (objects.config_map(metadata, {"resilience.yaml": placement.resilience}),)
