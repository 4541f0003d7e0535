"""Access to the cluster, Kafka and Postgres for passes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from tidemill_operator.actuators.base import Actuators, Connectors, NoClusters, OtherClusters, Schemas, Topics
from tidemill_operator.actuators.kubernetes.api import Api
from tidemill_operator.actuators.kubernetes.runtime import KubernetesRuntime, NamespaceLocks
from tidemill_operator.actuators.kubernetes.secrets import KubernetesSecrets
from tidemill_operator.actuators.platform import connectors_of, topics_of
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.cluster.leader import Elector
from tidemill_operator.cluster.telemetry import timed
from tidemill_operator.cluster_settings import ClusterSettings, Placement
from tidemill_operator.keys import Key
from tidemill_operator.plan.render.marks import OwnerReference
from tidemill_operator.settings import Platform


@dataclass(frozen=True)
class World:
    """The servers and settings of passes. Several threads may use it.

    Attributes:
        platform: addresses and defaults.
        placement: settings of every workload in the cluster.
        clusters: the Kafka clusters of sources elsewhere.
        connect: the connectors, or None if the platform has no Kafka Connect.
    """

    api: Api
    kafka: Topics
    postgres: Schemas
    platform: Platform
    placement: Placement
    clusters: OtherClusters = field(default_factory=NoClusters)
    connect: Connectors | None = None

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
        """Create the world from settings. Its actuators write only while the elector leads."""
        postgres = PostgresSchemas(platform.postgres, leadership=elector)
        return cls(
            api=api,
            kafka=topics_of(platform),
            postgres=postgres,
            platform=platform,
            placement=settings.placement,
            clusters=clusters or NoClusters(),
            connect=connectors_of(platform),
        )

    def actuators(self, key: Key, locks: NamespaceLocks) -> tuple[Actuators, KubernetesRuntime]:
        """Return the actuators of one resource, and its Kubernetes runtime."""
        owner = OwnerReference(key.uid, key.name)
        runtime = KubernetesRuntime(self.api, self.placement, owner, locks)
        return (
            Actuators(
                kafka=timed(self.kafka, "topics"),
                postgres=timed(self.postgres, "schema"),
                secrets=timed(KubernetesSecrets(self.api, owner), "secrets"),
                runtime=timed(runtime, "workloads"),
                clusters=timed(self.clusters, "topics"),
                connect=timed(self.connect, "connectors") if self.connect else None,
            ),
            runtime,
        )
