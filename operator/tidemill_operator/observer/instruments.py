"""Create the objects that measure the pipelines of a platform, in a cluster or on a laptop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tidemill_operator.actuators.kafka.clusters import ANSWER_SECONDS, Clusters, Keys
from tidemill_operator.actuators.kafka.log import KafkaLog
from tidemill_operator.actuators.kafka.session import KafkaSession
from tidemill_operator.errors import TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.observer.controllers import Controllers
from tidemill_operator.observer.observer import KAFKA_SECONDS
from tidemill_operator.observer.progress import ProgressWatch
from tidemill_operator.observer.scaling_figures import FiguresReader
from tidemill_operator.observer.writes import Writes
from tidemill_operator.settings import Platform


@dataclass(frozen=True)
class Instruments:
    """The objects that measure the pipelines of one platform."""

    clusters: Clusters
    reader: FiguresReader
    log: KafkaLog
    progress: ProgressWatch

    @classmethod
    def of(
        cls, platform: Platform, keys: Keys, *, changed: Callable[[Key, TidemillError | None], None] = lambda *_: None
    ) -> Instruments:
        """Create the measuring objects."""
        brokers, config, postgres = platform.kafka_brokers, platform.kafka_config, platform.postgres
        clusters = Clusters(keys, KafkaSession(brokers, config, ANSWER_SECONDS))
        log = KafkaLog(brokers, config=config, timeout_seconds=KAFKA_SECONDS)
        return cls(
            clusters=clusters,
            reader=FiguresReader(brokers, postgres, config=config, clusters=clusters),
            log=log,
            progress=ProgressWatch(
                changed, unled=Controllers(log.led).silent_seconds, refused=Writes.of(postgres).refusal
            ),
        )
