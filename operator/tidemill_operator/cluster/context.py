"""Access to the cluster, Kafka and Postgres for reconcile passes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from tidemill_operator.actuators.base import Actuators, Connectors, NoClusters, OtherClusters, Schemas, Topics
from tidemill_operator.actuators.connect.connectors import KafkaConnect
from tidemill_operator.actuators.connect.strimzi import StrimziConnectors
from tidemill_operator.actuators.kubernetes.api import Api
from tidemill_operator.actuators.kubernetes.connect import Clients, NamespaceConnect, WorkerSettings
from tidemill_operator.actuators.kubernetes.runtime import KubernetesRuntime, NamespaceLocks
from tidemill_operator.actuators.kubernetes.secrets import KubernetesSecrets
from tidemill_operator.actuators.platform import connectors_actuator, topics_actuator
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.cluster.leader import Elector
from tidemill_operator.cluster.telemetry import timed
from tidemill_operator.cluster_settings import ClusterSettings, Placement
from tidemill_operator.keys import Key
from tidemill_operator.plan.render.object_metadata import OwnerReference
from tidemill_operator.settings import Platform


@dataclass(frozen=True)
class PassContext:
    """The clients and settings that reconcile passes use."""

    api: Api
    kafka: Topics
    postgres: Schemas
    platform: Platform
    placement: Placement
    clusters: OtherClusters = field(default_factory=NoClusters)
    connect: Connectors | None = None
    workers: Clients = field(default_factory=Clients)

    @classmethod
    def of(
        cls,
        platform: Platform,
        settings: ClusterSettings,
        *,
        api: Api,
        elector: Elector,
        clusters: OtherClusters | None = None,
    ) -> Self:
        """Create the clients from settings."""
        postgres = PostgresSchemas(platform.postgres, leadership=elector)
        return cls(
            api=api,
            kafka=topics_actuator(platform),
            postgres=postgres,
            platform=platform,
            placement=settings.placement,
            clusters=clusters or NoClusters(),
            connect=_connect(platform, api),
        )

    def actuators(self, key: Key, locks: NamespaceLocks) -> tuple[Actuators, KubernetesRuntime]:
        """Return the actuators for one resource, and the Kubernetes runtime that they contain."""
        owner = OwnerReference(key.uid, key.name)
        connect = self._connect(key, locks)
        runtime = KubernetesRuntime(self.api, self.placement, owner, locks)
        return (
            Actuators(
                kafka=timed(self.kafka, "topics"),
                postgres=timed(self.postgres, "schema"),
                secrets=timed(KubernetesSecrets(self.api, owner), "secrets"),
                runtime=timed(runtime, "workloads"),
                clusters=timed(self.clusters, "topics"),
                connect=timed(connect, "connectors") if connect else None,
            ),
            runtime,
        )

    def _connect(self, key: Key, locks: NamespaceLocks) -> Connectors | None:
        if self.placement.connect is None:
            return self.connect
        settings = WorkerSettings(self.platform, self.placement, self.placement.connect, self.kafka, self.workers)
        owner = OwnerReference(key.uid, key.name)
        return NamespaceConnect(self.api, settings, owner, namespace=key.namespace, locks=locks)


def _connect(platform: Platform, api: Api) -> Connectors | None:
    if platform.connect_strimzi:
        namespace, _, cluster = platform.connect_strimzi.partition("/")
        return KafkaConnect(StrimziConnectors(api, namespace=namespace, cluster=cluster))
    return connectors_actuator(platform)
