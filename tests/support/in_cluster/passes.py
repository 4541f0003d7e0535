"""Single passes of the operator, in the process of the test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from in_cluster.cluster import eventually
from kube.standin import IMAGES
from tidemill_operator.actuators.base import Connectors
from tidemill_operator.actuators.kafka.clusters import Clusters
from tidemill_operator.actuators.kafka.log import KafkaLog
from tidemill_operator.actuators.kafka.topics import KafkaTopics
from tidemill_operator.actuators.kubernetes.api import Api, Document, load
from tidemill_operator.actuators.kubernetes.connect import Clients
from tidemill_operator.actuators.kubernetes.secrets import keys_in_cluster
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.cluster.control import Controller
from tidemill_operator.cluster.events import Recorder
from tidemill_operator.cluster.observed import ObservedStatus
from tidemill_operator.cluster.queue import Result
from tidemill_operator.cluster.scaling import ClusterScaling
from tidemill_operator.cluster.telemetry import Measures
from tidemill_operator.cluster.world import World
from tidemill_operator.cluster_settings import Placement
from tidemill_operator.keys import Key
from tidemill_operator.observer.observers import Observers
from tidemill_operator.observer.scaling_figures import FiguresReader
from tidemill_operator.settings import Platform


def platform(servers: Any) -> Platform:
    """The platform of the test's servers."""
    return Platform(
        runtime="kubernetes",
        cluster_id="test",
        kafka_brokers=servers.kafka,
        postgres=servers.postgres,
        redis_url=servers.redis,
        partitions=2,
    )


class RecordingApi(Api):
    """Notes every request that changes something, or would."""

    def __init__(self, kubeconfig: Path) -> None:
        super().__init__(load({"KUBECONFIG": str(kubeconfig)}))
        self.written: list[str] = []

    def _call(self, method: str, path: str, **more: Any) -> Document:
        if method != "GET":
            self.written.append(f"{method} {path}")
        return super()._call(method, path, **more)


@dataclass
class Passes:
    """The operator's passes in this process, as often as a test wants, without watches.

    Attributes:
        connect: the connectors of a Kafka Connect that all pipelines share.
        workers: the clients of the operator's own Connect workers.
        settings: members of the platform that differ from those of the other tests.
    """

    servers: Any
    api: RecordingApi
    placement: Placement = field(default_factory=lambda: Placement(images=IMAGES, egress_ports=(5432, 9092)))
    connect: Connectors | None = None
    workers: Clients = field(default_factory=Clients)
    settings: dict[str, Any] = field(default_factory=dict)

    def controller(self, api: Api | None = None, scaling: ClusterScaling | None = None) -> Controller:
        """One that knows nothing of earlier passes."""
        told, servers = api or self.api, self.servers
        world = World(
            api=told,
            kafka=KafkaTopics(servers.kafka),
            postgres=PostgresSchemas(servers.postgres),
            platform=replace(platform(servers), **self.settings),
            placement=self.placement,
            clusters=Clusters(keys_in_cluster(told)),
            connect=self.connect,
            workers=self.workers,
        )
        return Controller(
            world,
            recorder=Recorder(told, "test"),
            observer=self.observer(told),
            measures=Measures(),
            scaling=scaling or self.scaling(told),
        )

    def observer(self, api: Api | None = None) -> Observers:
        """One that looks when a test asks it to."""
        told, servers = api or self.api, self.servers
        clusters, show = Clusters(keys_in_cluster(told)), ObservedStatus(told, Recorder(told, "test")).show
        return Observers(KafkaLog(servers.kafka), clusters, servers.postgres, show)

    def scaling(self, api: Api | None = None, wake: Callable[[Key], None] = lambda _: None) -> ClusterScaling:
        """Decisions that know nothing of earlier ones, made when a test polls."""
        told, reader = api or self.api, FiguresReader(self.servers.kafka, self.servers.postgres)
        return ClusterScaling(told, reader, recorder=Recorder(told, "test"), measures=Measures(), wake=wake)

    def once(self, key: Key) -> Result:
        """One pass."""
        return self.controller().work(key)

    def until(self, key: Key, result: Result, *, seconds: float = 60.0) -> None:
        """Passes until one ends so."""
        eventually(lambda: self.once(key) is result, seconds=seconds, what=f"a pass of {key} ends {result.value}")
