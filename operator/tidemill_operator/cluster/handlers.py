"""Watches the cluster with kopf, and puts the keys of changed pipelines into the queue."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import kopf
from kubernetes import client

from tidemill_contract.resource.spec import KIND
from tidemill_operator.actuators.kubernetes.api import PIPELINE, Kind
from tidemill_operator.actuators.kubernetes.cache import ObjectCache
from tidemill_operator.actuators.kubernetes.children import LISTED
from tidemill_operator.cluster.queue import WorkQueue
from tidemill_operator.cluster.watchdog import Watchdog
from tidemill_operator.keys import Key
from tidemill_operator.plan.render import object_metadata
from tidemill_operator.resource.crd import GROUP, PLURAL, VERSION

# The delay before a pass, so that the several events of one change cause only one pass.
_SETTLE_SECONDS = 0.3
_REQUEST_SECONDS = 30.0
_CONNECT_SECONDS = 10.0

Body = Mapping[str, Any]


def settings() -> kopf.OperatorSettings:
    """Return kopf settings that disable everything except watches."""
    kopf_settings = kopf.OperatorSettings()
    kopf_settings.posting.enabled = False
    kopf_settings.peering.standalone = True
    # Scanning for CRDs and namespaces would need permissions that the operator does not have.
    kopf_settings.scanning.disabled = True
    kopf_settings.networking.request_timeout = _REQUEST_SECONDS
    kopf_settings.networking.connect_timeout = _CONNECT_SECONDS
    kopf_settings.watching.connect_timeout = _CONNECT_SECONDS
    selector = f"{object_metadata.MANAGED_BY}={object_metadata.MANAGER}"
    for kind in LISTED:
        kopf_settings.watching.label_selectors[_resource_id(kind)] = selector
    return kopf_settings


def registry(
    queue: WorkQueue[Key], watchdog: Watchdog, cache: ObjectCache, configuration: client.Configuration
) -> kopf.OperatorRegistry:
    """Return the kopf handlers for events of Kubernetes objects."""
    handlers = kopf.OperatorRegistry()
    fingerprints: dict[str, str] = {}

    @kopf.on.login(registry=handlers)
    def login(**_: Any) -> kopf.ConnectionInfo:
        return connection(configuration)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)
    async def resource(type: str | None, event: kopf.RawEvent, body: Body, **_: Any) -> None:
        metadata = body["metadata"]
        cache.store(PIPELINE, event["object"], deleted=type == "DELETED")
        watchdog.record_event(metadata["uid"], metadata["resourceVersion"], gone=type == "DELETED")
        current = "" if type == "DELETED" else fingerprint(body)
        if fingerprints.get(metadata["uid"]) == current:
            return  # the operator itself has written the status
        if type == "DELETED":
            fingerprints.pop(metadata["uid"], None)
        else:
            fingerprints[metadata["uid"]] = current
        queue.add(Key.of(metadata), reset_backoff=True)

    def watch(kind: Kind) -> None:
        @kopf.on.event(*_resource_id(kind), registry=handlers, id=f"child-{kind.plural}")
        async def child(type: str | None, event: kopf.RawEvent, body: Body, **_: Any) -> None:
            watchdog.record_event(body["metadata"]["uid"], body["metadata"]["resourceVersion"])
            cache.store(kind, event["object"], deleted=type == "DELETED")
            if body["metadata"].get("labels", {}).get(object_metadata.COMPONENT) == object_metadata.SCALING:
                return  # scaling requests passes without this handler
            for key in owners(body):
                queue.add(key, delay=_SETTLE_SECONDS)

    for kind in LISTED:
        watch(kind)
    return handlers


def _resource_id(kind: Kind) -> tuple[str, str, str]:
    group, _, version = kind.api_version.rpartition("/")
    return group, version, kind.plural


def fingerprint(body: Body) -> str:
    """Return as JSON those fields of a resource whose changes require a pass."""
    metadata = body["metadata"]
    members = ("generation", "annotations", "finalizers", "deletionTimestamp")
    return json.dumps([metadata.get(member) for member in members], sort_keys=True, default=dict)


def owners(body: Body) -> Iterator[Key]:
    """Yield the pipelines that own an object."""
    metadata = body["metadata"]
    for reference in metadata.get("ownerReferences", ()):
        if reference.get("kind") == KIND and str(reference.get("apiVersion", "")).startswith(f"{GROUP}/"):
            yield Key(metadata["namespace"], reference["name"], reference["uid"])


def connection(configuration: client.Configuration) -> kopf.ConnectionInfo:
    """Return kopf's connection to the API server, with the operator's configuration."""
    header = configuration.get_api_key_with_prefix("BearerToken") or ""
    scheme, _, token = header.partition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        scheme=scheme or None,
        token=token or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
    )
