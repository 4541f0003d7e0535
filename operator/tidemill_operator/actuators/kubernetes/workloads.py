"""One pass over a pipeline's own and shared objects in its namespace."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tidemill_operator.actuators.kubernetes.api import (
    CONFIG_MAP,
    DEPLOYMENT,
    SECRET,
    Api,
    Conflict,
    Document,
    Terminating,
)
from tidemill_operator.actuators.kubernetes.children import Children, owners
from tidemill_operator.actuators.kubernetes.reloads import reload_files
from tidemill_operator.actuators.kubernetes.rollout import rollout_outcome
from tidemill_operator.actuators.kubernetes.secrets import WRITER, decoded
from tidemill_operator.cluster_settings import Placement
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.outcome import COMPONENT_OF_WORKLOAD, Outcome, failed, skipped, with_missing_keys
from tidemill_operator.plan.model import Component, Workload
from tidemill_operator.plan.render import connect, object_metadata, objects
from tidemill_operator.plan.render.kubernetes import common_manifests, render
from tidemill_operator.plan.render.object_metadata import Manifest, OwnerReference
from tidemill_operator.plan.render.pods import Revisions

log = logging.getLogger(__name__)
SHARED_COMPONENTS: tuple[Component, ...] = ("ingest", "api")
_SALT = "salt"


@dataclass
class Pass:
    """The state of a namespace during one pass.

    Attributes:
        pipelines: names of the namespace's pipelines, by UID.
        reloaded: last hash for `reload_files`, by namespace and workload.
        kept: objects that are not deleted, as (kind, name).
    """

    api: Api
    placement: Placement
    owner: OwnerReference
    namespace: str
    children: Children
    pipelines: dict[str, str]
    reloaded: dict[tuple[str, str], str]
    kept: set[tuple[str, str]] = field(default_factory=set)
    deployments: dict[str, Document] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        api: Api,
        placement: Placement,
        owner: OwnerReference,
        namespace: str,
        reloaded: dict[tuple[str, str], str],
    ) -> Pass:
        """Read all objects of the namespace.

        Raises:
            TidemillError: the API does not answer.
        """
        children, pipelines = Children(api, namespace, owner), api.names_by_uid(namespace)
        if not children.sharing_uids() <= {*pipelines, owner.uid}:
            # Do not use the cache, because a pipeline missing from the cache would lose its files.
            pipelines = api.names_by_uid(namespace, uncached=True)
        return cls(api, placement, owner, namespace, children, pipelines, reloaded)

    def ensure(self, workloads: Sequence[Workload]) -> list[Outcome]:
        """Make the workloads match the plan, and remove the pipeline's other objects.

        Raises:
            TidemillError: the API does not answer.
        """
        try:
            name = object_metadata.credentials_secret(self.owner.name)
            files = decoded(self.api.get_maybe_cached(SECRET, self.namespace, name) or {})
            revisions = Revisions(object_metadata.digest(files.get(WRITER, "")), self._ensure_common())
            outcomes = [self._ensure_workload(workload, revisions, files) for workload in workloads]
            shared = {workload.component for workload in workloads if workload.pipeline is None}
            self.clean_up([part for part in SHARED_COMPONENTS if part not in shared], configs=not shared)
        except Terminating as error:
            return [
                skipped(COMPONENT_OF_WORKLOAD[workload.component], workload.name, message=error.message)
                for workload in workloads
            ]
        return outcomes

    def clean_up(self, components: Iterable[Component], *, configs: bool, connections: bool = False) -> None:
        """Remove the pipeline's own objects except those in `kept`, and remove its files from shared objects."""
        name = self.owner.name
        # Keep the files if a newer pipeline with the same name uses them.
        replaced = any(other == name and uid != self.owner.uid for uid, other in self.pipelines.items())
        if configs:
            files = [] if replaced else [f"{name}.json"]
            self.children.disown(CONFIG_MAP, object_metadata.shared_config_map(name), files=files)
        for component in components:
            secret = self.children.get(SECRET, object_metadata.shared_secret(component)) or {}
            files = [] if replaced else [file for file in secret.get("data") or {} if file.startswith(f"{name}.")]
            self.children.disown(SECRET, object_metadata.shared_secret(component), files=files)
        if connections:
            self.children.disown(SECRET, object_metadata.CONNECTIONS)
        if self.placement.connect is None:
            self._drop_workers()
        # Keep the Connect workers, because the pipeline's connectors must be deleted before the workers.
        self.children.prune(self.kept, keep_components=(connect.COMPONENT,))

    def _drop_workers(self) -> None:
        worker_objects = self.children.shared_objects(connect.COMPONENT)
        if worker_objects:
            # Delete the Secrets first: if the pass fails, the remaining objects make the next pass try again.
            for secret in (connect.SECRETS, connect.WORKER):
                self.children.delete_shared(SECRET, secret)
        for kind, name in worker_objects:
            self.children.delete_shared(kind, name)

    def _ensure_workload(self, workload: Workload, revisions: Revisions, files: dict[str, str]) -> Outcome:
        component, changes_before = COMPONENT_OF_WORKLOAD[workload.component], self.children.changed
        shared = workload.pipeline is None
        rendering = render(
            workload,
            pipeline=self.owner.name,
            owner=self.owner,
            sharing=self._owners(DEPLOYMENT.kind, workload.name) if shared else (),
            placement=self.placement,
            revisions=revisions,
        )
        manifests = [*rendering.own, *rendering.workload]
        self.kept |= {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}
        if shared:
            self.kept.add((CONFIG_MAP.kind, object_metadata.shared_config_map(self.owner.name)))
        if workload.scaled:
            self.kept.add((CONFIG_MAP.kind, object_metadata.scaling_config_map(self.owner.name, workload.component)))
        try:
            copies = self._secret_copies(workload)
            if shared:
                self._ensure_shared_files(workload, {**files, **copies})
            for manifest in manifests:
                live = self.children.ensure(manifest)
        except (Conflict, Terminating):
            raise
        except TidemillError as error:
            if error.reason == Reason.UNREACHABLE:
                raise
            return failed(component, workload.name, error, changed=self.children.changed - changes_before)
        self.deployments[workload.component] = live
        if shared:
            self._reload_files(workload)
        missing = [source for file, source in workload.secret_sources.items() if file not in copies]
        outcome = rollout_outcome(workload, live, changed=self.children.changed - changes_before)
        return with_missing_keys(outcome, missing)

    def _secret_copies(self, workload: Workload) -> dict[str, str]:
        secrets = {
            name: self.api.get(SECRET, self.namespace, name) for name, _ in set(workload.secret_sources.values())
        }
        files = {}
        for file, (name, key) in workload.secret_sources.items():
            data = (secrets[name] or {}).get("data") or {}
            with contextlib.suppress(KeyError, ValueError):
                files[file] = base64.b64decode(data[key]).decode()
        return files

    def _ensure_shared_files(self, workload: Workload, files: dict[str, str]) -> None:
        config = object_metadata.shared_config_map(self.owner.name)
        configs = (self.children.get(CONFIG_MAP, config) or {}).get("data") or {}
        data = {**self._files_of_others(configs), **workload.configs}
        self.children.ensure(objects.config_map(self._shared_metadata(CONFIG_MAP.kind, config, "configs"), data))
        secret = object_metadata.shared_secret(workload.component)
        stored = decoded(self.children.get(SECRET, secret) or {})
        wanted = (*workload.secrets[self.owner.name], *workload.secret_sources)
        own = {f"{self.owner.name}.{file}": files[file] for file in wanted if file in files}
        data = {**self._files_of_others(stored), **own}
        self.children.ensure(objects.secret(self._shared_metadata(SECRET.kind, secret, workload.component), data))

    def _reload_files(self, workload: Workload) -> None:
        names = [(CONFIG_MAP.kind, name) for name in object_metadata.shared_config_maps()]
        names.append((SECRET.kind, object_metadata.shared_secret(workload.component)))
        versions = [(self.children.known(*name) or {}).get("metadata", {}).get("resourceVersion", "") for name in names]
        files_hash = object_metadata.digest(",".join(versions))
        self.children.changed += reload_files(
            self.api, self.namespace, workload.name, files_hash=files_hash, reloaded=self.reloaded
        )

    def _ensure_common(self) -> str:
        """Write the files shared by all workloads of the namespace.

        Return a hash of the connection settings.
        """
        for manifest in common_manifests(
            self.namespace, sharing=self._owners(CONFIG_MAP.kind, object_metadata.RESILIENCE), placement=self.placement
        ):
            self.kept.add((manifest["kind"], manifest["metadata"]["name"]))
            self.children.ensure(manifest)
        connections = dict(self.placement.connections)
        if not connections:
            self.children.disown(SECRET, object_metadata.CONNECTIONS)
            return ""
        stored = decoded(self.children.get(SECRET, object_metadata.CONNECTIONS) or {})
        salt = stored.get(_SALT) or secrets.token_hex(16)
        data = {**connections, _SALT: salt}
        metadata = self._shared_metadata(SECRET.kind, object_metadata.CONNECTIONS, "common")
        self.children.ensure(objects.secret(metadata, data))
        return object_metadata.digest(json.dumps(data, sort_keys=True))

    def _files_of_others(self, data: dict[str, str]) -> dict[str, str]:
        others = set(self.pipelines.values()) - {self.owner.name}
        return {file: text for file, text in data.items() if file.partition(".")[0] in others}

    def _shared_metadata(self, kind: str, name: str, component: str) -> Manifest:
        sharing = self._owners(kind, name)
        return object_metadata.shared_metadata(name, self.namespace, component=component, owners=sharing)

    def _owners(self, kind: str, name: str) -> list[OwnerReference]:
        return owners(self.children.known(kind, name), self.pipelines, self.owner)
