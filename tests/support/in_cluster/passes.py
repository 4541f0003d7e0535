"""Single passes of the operator in the process of a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from in_cluster.cluster import eventually
from kube.standin import IMAGES
from tidemill_operator.actuators.base import Connectors
from tidemill_operator.actuators.kafka.clusters import Clusters
from tidemill_operator.actuators.kafka.offsets import OffsetReader
from tidemill_operator.actuators.kafka.topics import KafkaTopics
from tidemill_operator.actuators.kubernetes.api import Api, Document, load_configuration
from tidemill_operator.actuators.kubernetes.connect import Clients
from tidemill_operator.actuators.kubernetes.secrets import secret_reader
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.cluster.context import PassContext
from tidemill_operator.cluster.control import Controller
from tidemill_operator.cluster.event_recorder import EventRecorder
from tidemill_operator.cluster.figures_writer import FiguresWriter
from tidemill_operator.cluster.queue import Result
from tidemill_operator.cluster.scaling import ClusterScaling
from tidemill_operator.cluster.telemetry import OperatorMetrics
from tidemill_operator.cluster_settings import Placement
from tidemill_operator.keys import Key
from tidemill_operator.observer.observers import Observers
from tidemill_operator.observer.scaling_figures import FiguresReader
from tidemill_operator.settings import Platform


def platform(servers: Any) -> Platform:
    """Return the settings of a platform that uses these servers."""
    return Platform(
        runtime="kubernetes",
        cluster_id="test",
        kafka_brokers=servers.kafka,
        postgres=servers.postgres,
        redis_url=servers.redis,
        partitions=2,
    )


class RecordingApi(Api):
    """A client that records every request except GET.

    Attributes:
        written: method and path of each recorded request.
    """

    def __init__(self, kubeconfig: Path) -> None:
        super().__init__(load_configuration({"KUBECONFIG": str(kubeconfig)}))
        self.written: list[str] = []

    def _call(self, method: str, path: str, **more: Any) -> Document:
        if method != "GET":
            self.written.append(f"{method} {path}")
        return super()._call(method, path, **more)


@dataclass
class Passes:
    """Runs passes of the operator in this process. A test starts each pass; nothing watches resources.

    Attributes:
        connect: connectors of a Kafka Connect that all pipelines share.
        workers: clients of the Connect workers that the operator deploys.
        settings: members of the platform that differ from `platform`.
    """

    servers: Any
    api: RecordingApi
    placement: Placement = field(default_factory=lambda: Placement(images=IMAGES, egress_ports=(5432, 9092)))
    connect: Connectors | None = None
    workers: Clients = field(default_factory=Clients)
    settings: dict[str, Any] = field(default_factory=dict)

    def controller(self, api: Api | None = None, scaling: ClusterScaling | None = None) -> Controller:
        """Return a new controller, without memory of earlier passes."""
        client, servers = api or self.api, self.servers
        world = PassContext(
            api=client,
            kafka=KafkaTopics(servers.kafka),
            postgres=PostgresSchemas(servers.postgres),
            platform=replace(platform(servers), **self.settings),
            placement=self.placement,
            clusters=Clusters(secret_reader(client)),
            connect=self.connect,
            workers=self.workers,
        )
        return Controller(
            world,
            recorder=EventRecorder(client, "test"),
            observer=self.observer(client),
            metrics=OperatorMetrics(),
            scaling=scaling or self.scaling(client),
        )

    def observer(self, api: Api | None = None) -> Observers:
        """Return an observer that reads figures only when a test calls it."""
        client, servers = api or self.api, self.servers
        clusters, show = Clusters(secret_reader(client)), FiguresWriter(client, EventRecorder(client, "test")).update
        return Observers(OffsetReader(servers.kafka), clusters, servers.postgres, show)

    def scaling(self, api: Api | None = None, wake: Callable[[Key], None] = lambda _: None) -> ClusterScaling:
        """Return a new scaler, without memory of earlier decisions. It decides only when a test polls it."""
        client, reader = api or self.api, FiguresReader(self.servers.kafka, self.servers.postgres)
        return ClusterScaling(
            client, reader, recorder=EventRecorder(client, "test"), metrics=OperatorMetrics(), request_pass=wake
        )

    def once(self, key: Key) -> Result:
        """Run one pass with a new controller and return its result."""
        return self.controller().run_pass(key)

    def until(self, key: Key, result: Result, *, seconds: float = 60.0) -> None:
        """Run passes until one has this result."""
        eventually(lambda: self.once(key) is result, seconds=seconds, what=f"a pass of {key} ends {result.value}")
