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
from tidemill_operator.actuators.kubernetes.rollout import rollout
from tidemill_operator.actuators.kubernetes.secrets import WRITER, decoded
from tidemill_operator.cluster_settings import Placement
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.outcome import OF_WORKLOAD, Outcome, failed, lacking, skipped
from tidemill_operator.plan.model import Component, Workload
from tidemill_operator.plan.render import connect, marks, objects
from tidemill_operator.plan.render.kubernetes import common, render
from tidemill_operator.plan.render.marks import Manifest, OwnerReference
from tidemill_operator.plan.render.pods import Revisions

log = logging.getLogger(__name__)
SHARING: tuple[Component, ...] = ("ingest", "api")
_SALT = "salt"


@dataclass
class Pass:
    """The state of a namespace during one pass. `kept` names the objects that are not deleted, as (kind, name)."""

    api: Api
    placement: Placement
    owner: OwnerReference
    namespace: str
    children: Children
    alive: dict[str, str]
    shown: dict[tuple[str, str], str]
    kept: set[tuple[str, str]] = field(default_factory=set)
    deployments: dict[str, Document] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        api: Api,
        placement: Placement,
        owner: OwnerReference,
        namespace: str,
        shown: dict[tuple[str, str], str],
    ) -> Pass:
        """Read all objects of the namespace.

        Raises:
            TidemillError: the API does not answer.
        """
        children, alive = Children(api, namespace, owner), api.alive(namespace)
        if not children.sharing() <= {*alive, owner.uid}:
            # Do not use the cache, because a pipeline missing from the cache would lose its files.
            alive = api.alive(namespace, sure=True)
        return cls(api, placement, owner, namespace, children, alive, shown)

    def ensure(self, workloads: Sequence[Workload]) -> list[Outcome]:
        """Make the workloads match the plan, and remove the pipeline's other objects.

        Raises:
            TidemillError: the API does not answer.
        """
        try:
            files = decoded(self.api.recent(SECRET, self.namespace, marks.credentials(self.owner.name)) or {})
            revisions = Revisions(marks.digest(files.get(WRITER, "")), self._common())
            outcomes = [self._workload(workload, revisions, files) for workload in workloads]
            shared = {workload.component for workload in workloads if workload.pipeline is None}
            self.leave([part for part in SHARING if part not in shared], configs=not shared)
        except Terminating as error:
            return [
                skipped(OF_WORKLOAD[workload.component], workload.name, message=error.message) for workload in workloads
            ]
        return outcomes

    def leave(self, components: Iterable[Component], *, configs: bool, all_of_it: bool = False) -> None:
        """Remove the pipeline's own objects except those in `kept`, and remove its files from shared objects."""
        name = self.owner.name
        # Keep the files if a newer pipeline with the same name uses them.
        replaced = any(other == name and uid != self.owner.uid for uid, other in self.alive.items())
        if configs:
            files = [] if replaced else [f"{name}.json"]
            self.children.leave(CONFIG_MAP, marks.shared_config(name), files=files)
        for component in components:
            secret = self.children.get(SECRET, marks.shared_secret(component)) or {}
            files = [] if replaced else [file for file in secret.get("data") or {} if file.startswith(f"{name}.")]
            self.children.leave(SECRET, marks.shared_secret(component), files=files)
        if all_of_it:
            self.children.leave(SECRET, marks.CONNECTIONS)
        if self.placement.connect is None:
            self._drop_workers()
        # Keep the Connect workers, because the pipeline's connectors must be deleted before the workers.
        self.children.prune(self.kept, spared=(connect.COMPONENT,))

    def _drop_workers(self) -> None:
        worker_objects = self.children.shared(connect.COMPONENT)
        if worker_objects:
            # Delete the Secrets first: if the pass fails, the remaining objects make the next pass try again.
            for secret in (connect.SECRETS, connect.WORKER):
                self.children.drop(SECRET, secret)
        for kind, name in worker_objects:
            self.children.drop(kind, name)

    def _workload(self, workload: Workload, revisions: Revisions, files: dict[str, str]) -> Outcome:
        component, before = OF_WORKLOAD[workload.component], self.children.changed
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
            self.kept.add((CONFIG_MAP.kind, marks.shared_config(self.owner.name)))
        if workload.scaled:
            self.kept.add((CONFIG_MAP.kind, marks.scaling(self.owner.name, workload.component)))
        try:
            copies = self._copies(workload)
            if shared:
                self._share(workload, {**files, **copies})
            for manifest in manifests:
                live = self.children.ensure(manifest)
        except (Conflict, Terminating):
            raise
        except TidemillError as error:
            if error.reason == Reason.UNREACHABLE:
                raise
            return failed(component, workload.name, error, changed=self.children.changed - before)
        self.deployments[workload.component] = live
        if shared:
            self._show(workload)
        missing = [source for file, source in workload.copied.items() if file not in copies]
        return lacking(rollout(workload, live, changed=self.children.changed - before), missing)

    def _copies(self, workload: Workload) -> dict[str, str]:
        secrets = {name: self.api.get(SECRET, self.namespace, name) for name, _ in set(workload.copied.values())}
        files = {}
        for file, (name, key) in workload.copied.items():
            data = (secrets[name] or {}).get("data") or {}
            with contextlib.suppress(KeyError, ValueError):
                files[file] = base64.b64decode(data[key]).decode()
        return files

    def _share(self, workload: Workload, files: dict[str, str]) -> None:
        config = marks.shared_config(self.owner.name)
        configs = (self.children.get(CONFIG_MAP, config) or {}).get("data") or {}
        data = {**self._of_the_living(configs), **workload.configs}
        self.children.ensure(objects.config_map(self._shared(CONFIG_MAP.kind, config, "configs"), data))
        secret = marks.shared_secret(workload.component)
        stored = decoded(self.children.get(SECRET, secret) or {})
        wanted = (*workload.secrets[self.owner.name], *workload.copied)
        own = {f"{self.owner.name}.{file}": files[file] for file in wanted if file in files}
        data = {**self._of_the_living(stored), **own}
        self.children.ensure(objects.secret(self._shared(SECRET.kind, secret, workload.component), data))

    def _show(self, workload: Workload) -> None:
        names = [(CONFIG_MAP.kind, name) for name in marks.shared_configs()]
        names.append((SECRET.kind, marks.shared_secret(workload.component)))
        seen = [(self.children.known(*name) or {}).get("metadata", {}).get("resourceVersion", "") for name in names]
        mark = marks.digest(",".join(seen))
        self.children.changed += reload_files(self.api, self.namespace, workload.name, mark=mark, shown=self.shown)

    def _common(self) -> str:
        """Write the files shared by all workloads of the namespace.

        Return a hash of the connection settings.
        """
        for manifest in common(
            self.namespace, sharing=self._owners(CONFIG_MAP.kind, marks.RESILIENCE), placement=self.placement
        ):
            self.kept.add((manifest["kind"], manifest["metadata"]["name"]))
            self.children.ensure(manifest)
        connections = dict(self.placement.connections)
        if not connections:
            self.children.leave(SECRET, marks.CONNECTIONS)
            return ""
        stored = decoded(self.children.get(SECRET, marks.CONNECTIONS) or {})
        salt = stored.get(_SALT) or secrets.token_hex(16)
        data = {**connections, _SALT: salt}
        self.children.ensure(objects.secret(self._shared(SECRET.kind, marks.CONNECTIONS, "common"), data))
        return marks.digest(json.dumps(data, sort_keys=True))

    def _of_the_living(self, data: dict[str, str]) -> dict[str, str]:
        others = set(self.alive.values()) - {self.owner.name}
        return {file: text for file, text in data.items() if file.partition(".")[0] in others}

    def _shared(self, kind: str, name: str, component: str) -> Manifest:
        sharing = self._owners(kind, name)
        return marks.shared_metadata(name, self.namespace, component=component, owners=sharing)

    def _owners(self, kind: str, name: str) -> list[OwnerReference]:
        return owners(self.children.known(kind, name), self.alive, self.owner)
