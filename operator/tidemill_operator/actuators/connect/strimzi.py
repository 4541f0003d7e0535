"""Manage connectors as `KafkaConnector` resources of Strimzi."""

from __future__ import annotations

from collections.abc import Mapping

from tidemill_operator.actuators.kubernetes.api import KAFKA_CONNECTOR, Api, Document, NotFound
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.connect import strimzi
from tidemill_operator.plan.connect.states import LiveConnector


class StrimziConnectors:
    """A thread-safe client of the `KafkaConnector` resources of one `KafkaConnect`."""

    def __init__(self, api: Api, *, namespace: str, cluster: str) -> None:
        self._api, self._namespace, self._cluster = api, namespace, cluster
        # For each connector, the task with the latest restart request.
        self._restarted: dict[str, int] = {}

    def names(self) -> list[str]:
        """Return the names of all connectors in the namespace, including those of other Connect clusters.

        Raises:
            TidemillError: the API refuses the request or does not answer, or Strimzi's CRD is missing.
        """
        try:
            connectors = self._api.list(KAFKA_CONNECTOR, self._namespace, metadata_only=True)
        except NotFound:
            message = f"the cluster has no resource {strimzi.KIND} ({strimzi.API_VERSION})"
            remedy = "install Strimzi, or set connect.image or connect.url instead of connect.strimzi"
            raise TidemillError(Reason.NOT_SUPPORTED, message, remedy) from None
        return [strimzi.connector_name(item["metadata"]["name"]) for item in connectors]

    def get(self, name: str) -> LiveConnector | None:
        """Return a connector, or None if its KafkaConnector resource does not exist."""
        resource = self._read(name)
        if resource is None:
            self.names()  # raises an error if Strimzi's CRD does not exist
            return None
        return strimzi.read_connector(name, resource, cluster=self._cluster)

    def create(self, name: str, config: Mapping[str, str], *, paused: bool) -> None:
        """Create a connector's resource."""
        self._api.create(self._manifest(name, config, "paused" if paused else "running"))

    def configure(self, name: str, config: Mapping[str, str]) -> None:
        """Replace the config of a connector. A paused connector stays paused."""
        resource = self._require(name)
        wanted = self._manifest(name, config, strimzi.requested_state(resource))
        metadata = resource["metadata"]
        labels = {**(metadata.get("labels") or {}), **wanted["metadata"]["labels"]}
        self._api.replace({**wanted, "metadata": {**metadata, "labels": labels}})

    def pause(self, name: str) -> None:
        """Pause a connector."""
        self._merge(name, {"spec": {"state": "paused"}})

    def resume(self, name: str) -> None:
        """Resume a connector."""
        self._merge(name, {"spec": {"state": "running"}})

    def restart(self, name: str, *, only_failed: bool = True) -> None:
        """Request a restart of one failed task, or of the connector if no task failed."""
        failed = strimzi.failed_tasks(self._require(name)) if only_failed else []
        if not failed:
            self._annotate(name, strimzi.RESTART, "true")
            return
        last = self._restarted.get(name, -1)
        task = next((number for number in failed if number > last), failed[0])
        self._annotate(name, strimzi.RESTART_TASK, str(task))
        self._restarted[name] = task

    def delete(self, name: str) -> None:
        """Delete a connector's resource."""
        self._restarted.pop(name, None)
        self._api.delete(KAFKA_CONNECTOR, self._namespace, strimzi.resource_name(name))

    def _manifest(self, name: str, config: Mapping[str, str], state: str) -> Document:
        return strimzi.manifest(name, config, namespace=self._namespace, cluster=self._cluster, state=state)

    def _read(self, name: str) -> Document | None:
        return self._api.get(KAFKA_CONNECTOR, self._namespace, strimzi.resource_name(name))

    def _require(self, name: str) -> Document:
        resource = self._read(name)
        if resource is None:
            raise TidemillError(Reason.WAITING, f"the resource of connector {name} was deleted meanwhile")
        return resource

    def _annotate(self, name: str, annotation: str, value: str) -> None:
        self._merge(name, {"metadata": {"annotations": {annotation: value}}})

    def _merge(self, name: str, patch: Document) -> None:
        try:
            self._api.merge(KAFKA_CONNECTOR, self._namespace, strimzi.resource_name(name), patch)
        except NotFound:
            raise TidemillError(Reason.WAITING, f"the resource of connector {name} was deleted meanwhile") from None
