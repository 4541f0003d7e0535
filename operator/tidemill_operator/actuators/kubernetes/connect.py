"""Run the Kafka Connect workers of a namespace, which its pipelines with connectors share."""

from __future__ import annotations

import base64
import json
import secrets as randomness
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tidemill_operator.actuators.base import Topics
from tidemill_operator.actuators.connect.client import ConnectClient
from tidemill_operator.actuators.connect.connectors import KafkaConnect, failed_outcome
from tidemill_operator.actuators.kubernetes.api import (
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    NETWORK_POLICY,
    PIPELINE,
    SECRET,
    SERVICE,
    SERVICE_ACCOUNT,
    Api,
    Conflict,
    Document,
)
from tidemill_operator.actuators.kubernetes.children import Children, owners
from tidemill_operator.actuators.kubernetes.reloads import reload_files
from tidemill_operator.actuators.kubernetes.rollout import rollout_outcome
from tidemill_operator.actuators.kubernetes.runtime import NamespaceLocks
from tidemill_operator.actuators.kubernetes.secrets import decoded
from tidemill_operator.cluster_settings import ConnectWorkers, Placement
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.outcome import Outcome, Rank
from tidemill_operator.plan.connect import workers
from tidemill_operator.plan.connect.connectors import check_secret, secret_file
from tidemill_operator.plan.live import Owner
from tidemill_operator.plan.model import Connector, Workload
from tidemill_operator.plan.render import connect, object_metadata, objects
from tidemill_operator.plan.render.object_metadata import OwnerReference
from tidemill_operator.settings import Platform

_ATTEMPTS = 3
_MAX_NAMED = 3
_SALT = "salt"
_OBJECTS = (DEPLOYMENT, SERVICE, NETWORK_POLICY, DISRUPTION_BUDGET, SERVICE_ACCOUNT)


def service_url(namespace: str) -> str:
    """Return the address of a namespace's Connect workers."""
    return f"http://{workers.NAME}.{namespace}.svc:{workers.PORT}"


class Clients:
    """The clients of each namespace's Connect workers, kept between passes."""

    def __init__(self, url: Callable[[str], str] = service_url) -> None:
        self._url = url
        self._by_namespace: dict[str, KafkaConnect] = {}
        self._clients: list[ConnectClient] = []
        self._lock = threading.Lock()
        self.swept: dict[str, str] = {}

    def of(self, namespace: str) -> KafkaConnect:
        """Return a namespace's connectors."""
        with self._lock:
            if namespace not in self._by_namespace:
                self._clients.append(ConnectClient(self._url(namespace)))
                self._by_namespace[namespace] = KafkaConnect(self._clients[-1])
            return self._by_namespace[namespace]

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            for client in self._clients:
                client.close()


@dataclass(frozen=True)
class WorkerSettings:
    """The settings that the Connect workers of all namespaces share."""

    platform: Platform
    placement: Placement
    workers: ConnectWorkers
    kafka: Topics
    clients: Clients


class NamespaceConnect:
    """The connectors of one pipeline during one pass, and the Connect workers of the namespace."""

    def __init__(
        self, api: Api, settings: WorkerSettings, owner: OwnerReference, *, namespace: str, locks: NamespaceLocks
    ) -> None:
        self._api, self._settings, self._owner = api, settings, owner
        self._namespace, self._locks = namespace, locks
        self._connect = settings.clients.of(namespace)

    def ensure(self, connectors: Sequence[Connector], *, owner: Owner, adopt: bool = False) -> list[Outcome]:
        """Make the workers and the pipeline's connectors match the plan.

        Raises:
            TidemillError: the workers are still starting, cannot be started, or do not answer.
        """
        if not connectors:
            return self.remove(owner=owner)
        client = json.loads(self._settings.placement.connections.get("kafka.json") or "{}")
        properties = workers.properties(self._namespace, self._settings.platform, client)
        for outcome in self._settings.kafka.ensure(workers.topics(self._namespace, self._settings.platform)):
            if outcome.rank is Rank.FAILED:
                raise TidemillError(outcome.reason, f"the topics of Kafka Connect: {outcome.message}")
        values, missing = self._secret_values(connectors)
        live = self._retry_on_conflict(lambda children, pipelines: self._apply(children, pipelines, properties, values))
        rollout = rollout_outcome(self._workload, live, changed=0)
        if not _available(live):
            raise TidemillError(rollout.reason, f"Kafka Connect starts: {rollout.message}")
        failures = [
            failed_outcome(connector, missing[connector.name]) for connector in connectors if connector.name in missing
        ]
        wanted = [connector for connector in connectors if connector.name not in missing]
        self._sweep(live)
        keep = [outcome.name for outcome in failures]
        outcomes = self._connect.ensure(wanted, owner=owner, adopt=adopt, keep=keep)
        return [*outcomes, *failures, *([] if rollout.rank is Rank.DONE else [rollout])]

    def _sweep(self, live: Document) -> None:
        """Delete the connectors of pipelines that no longer exist or no longer have connectors.

        The deletion runs once for each new Deployment of the workers.
        """
        uid = live["metadata"]["uid"]
        if self._settings.clients.swept.get(self._namespace) != uid:
            uids = {self._owner.uid, *(pipeline["metadata"]["uid"] for pipeline in self._dependent_pipelines())}
            cluster = self._settings.platform.cluster_id
            self._connect.sweep(cluster=cluster, namespace=self._namespace, pipeline_uids=uids)
            self._settings.clients.swept[self._namespace] = uid

    def observe(self, connectors: Sequence[Connector]) -> list[Outcome]:
        """Return the outcomes of the live connectors.

        Raises:
            TidemillError: the workers do not answer.
        """
        return self._connect.observe(connectors)

    def remove(self, *, owner: Owner) -> list[Outcome]:
        """Delete all connectors of the pipeline, and then the workers if no other pipeline needs them.

        Raises:
            TidemillError: the workers do not answer, or no worker runs although another pipeline needs the workers.
        """
        # If no worker runs, `_sweep` deletes the connectors after the next start of the workers.
        live = self._api.get(DEPLOYMENT, self._namespace, workers.NAME)
        if live is not None and not _available(live):
            self._retry_on_conflict(self._remove_idle)
            return []
        outcomes = self._connect.remove(owner=owner) if live is not None else []
        self._retry_on_conflict(self._disown_workers)
        return outcomes

    def _remove_idle(self, children: Children, _: dict[str, str]) -> Document:
        live = children.known(DEPLOYMENT.kind, workers.NAME)
        dependents = [pipeline["metadata"] for pipeline in self._dependent_pipelines()]
        others = sorted(
            metadata["name"]
            for metadata in dependents
            if metadata["uid"] != self._owner.uid and not metadata.get("deletionTimestamp")
        )
        if live is not None and others:
            rollout = rollout_outcome(self._workload, live, changed=0)
            message = f"the connectors cannot be deleted, because Kafka Connect does not run: {rollout.message}"
            named = ", ".join(others[:_MAX_NAMED])
            remedy = f"check connect.image of the chart, so that the workers start; {named} need them too"
            raise TidemillError(rollout.reason, message, remedy)
        for kind in _OBJECTS:
            children.delete_shared(kind, workers.NAME)
        for secret in (connect.SECRETS, connect.WORKER):
            children.delete_shared(SECRET, secret)
        return {}

    def _dependent_pipelines(self) -> list[Document]:
        return [pipeline for pipeline in self._api.list(PIPELINE, self._namespace) if workers.needs_workers(pipeline)]

    @property
    def _workload(self) -> Workload:
        return connect.connect_workload(self._namespace, self._settings.workers)

    def _secret_values(self, connectors: Sequence[Connector]) -> tuple[dict[str, str], dict[str, TidemillError]]:
        """Return the values of the secrets by file name, and errors by connector.

        Each connector with an unusable secret has an error.
        """
        names = {name for connector in connectors for name, _ in connector.secrets}
        secrets = {name: (self._api.get(SECRET, self._namespace, name) or {}).get("data") or {} for name in names}
        values: dict[str, str] = {}
        missing: dict[str, TidemillError] = {}
        for connector in connectors:
            for name, key in connector.secrets:
                try:
                    values[secret_file(self._owner.name, name, key)] = _secret_value(name, key, secrets[name])
                except TidemillError as error:
                    missing[connector.name] = error
        return values, missing

    def _apply(
        self, children: Children, pipelines: dict[str, str], properties: str, values: dict[str, str]
    ) -> Document:
        revision = self._configure(children, pipelines, properties)
        stored = decoded(children.get(SECRET, connect.SECRETS) or {})
        others = set(pipelines.values()) - {self._owner.name}
        data = {file: text for file, text in stored.items() if file.partition(".")[0] in others} | values
        metadata = self._metadata(children, pipelines, SECRET.kind, connect.SECRETS)
        written = children.ensure(objects.secret(metadata, data))
        manifests = connect.connect_manifests(
            self._namespace,
            workers=self._settings.workers,
            placement=self._settings.placement,
            owners=owners(children.known(DEPLOYMENT.kind, workers.NAME), pipelines, self._owner),
            revision=revision,
        )
        for manifest in manifests:
            live = children.ensure(manifest)
        kinds = {manifest["kind"] for manifest in manifests}
        for kind in _OBJECTS:
            if kind.kind not in kinds:  # the chart can disable the NetworkPolicy
                children.delete_shared(kind, workers.NAME)
        files_hash = object_metadata.digest(str(written["metadata"].get("resourceVersion", "")))
        reload_files(self._api, self._namespace, workers.NAME, files_hash=files_hash, reloaded=self._locks.reloaded)
        return live

    def _configure(self, children: Children, pipelines: dict[str, str], properties: str) -> str:
        """Write the configuration of the workers to the Secret, and return a hash of the Secret's content."""
        stored = decoded(children.get(SECRET, connect.WORKER) or {})
        files = {workers.PROPERTIES: properties, workers.LOGGING: workers.WARNINGS_TO_CONSOLE}
        data = {**files, _SALT: stored.get(_SALT) or randomness.token_hex(16)}
        children.ensure(objects.secret(self._metadata(children, pipelines, SECRET.kind, connect.WORKER), data))
        return object_metadata.digest(json.dumps(data, sort_keys=True))

    def _metadata(self, children: Children, pipelines: dict[str, str], kind: str, name: str) -> Document:
        sharing = owners(children.known(kind, name), pipelines, self._owner)
        return object_metadata.shared_metadata(name, self._namespace, component=connect.COMPONENT, owners=sharing)

    def _disown_workers(self, children: Children, pipelines: dict[str, str]) -> Document:
        for kind in _OBJECTS:
            children.disown(kind, workers.NAME)
        stored = children.get(SECRET, connect.SECRETS) or {}
        files = [file for file in stored.get("data") or {} if file.startswith(f"{self._owner.name}.")]
        children.disown(SECRET, connect.SECRETS, files=files)
        children.disown(SECRET, connect.WORKER)
        return {}

    def _retry_on_conflict(self, act: Callable[[Children, dict[str, str]], Document]) -> Document:
        """Call `act` with the namespace's current state, and call `act` again if another operator changed an object."""
        with self._locks.of(self._namespace):
            for attempt in range(_ATTEMPTS):
                children = Children(self._api, self._namespace, self._owner)
                pipelines = self._api.names_by_uid(self._namespace)
                if not children.sharing_uids() <= {*pipelines, self._owner.uid}:
                    # Bypass the cache. If the cache lacks a pipeline, `act` removes this pipeline's files.
                    pipelines = self._api.names_by_uid(self._namespace, uncached=True)
                try:
                    return act(children, pipelines)
                except Conflict:
                    if attempt == _ATTEMPTS - 1:
                        raise
        raise AssertionError("the last attempt returns or raises")


def _available(live: Document) -> bool:
    return int(live.get("status", {}).get("availableReplicas", 0)) > 0


def _secret_value(secret: str, key: str, data: Mapping[str, str]) -> str:
    try:
        text = base64.b64decode(data[key]).decode()
    except (KeyError, ValueError):
        message = f"Secret {secret} has no key {key} that is text"
        remedy = "add the key to the Secret in the pipeline's namespace"
        raise TidemillError(Reason.REFUSED, message, remedy) from None
    check_secret(secret, key, text)
    return text
