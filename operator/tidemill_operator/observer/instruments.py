"""Create the objects that measure the pipelines of a platform, in a cluster or on a laptop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tidemill_operator.actuators.kafka.clusters import ANSWER_SECONDS, Clusters, SecretReader
from tidemill_operator.actuators.kafka.offsets import OffsetReader
from tidemill_operator.actuators.kafka.session import KafkaSession
from tidemill_operator.errors import TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.observer.controller_check import ControllerCheck
from tidemill_operator.observer.observer import KAFKA_SECONDS
from tidemill_operator.observer.progress import ProgressWatch
from tidemill_operator.observer.scaling_figures import FiguresReader
from tidemill_operator.observer.write_check import WriteCheck
from tidemill_operator.settings import Platform


@dataclass(frozen=True)
class Instruments:
    """The objects that measure the pipelines of one platform."""

    clusters: Clusters
    reader: FiguresReader
    offset_reader: OffsetReader
    progress: ProgressWatch

    @classmethod
    def of(
        cls,
        platform: Platform,
        keys: SecretReader,
        *,
        changed: Callable[[Key, TidemillError | None], None] = lambda *_: None,
    ) -> Instruments:
        """Create the measuring objects."""
        brokers, config, postgres = platform.kafka_brokers, platform.kafka_config, platform.postgres
        clusters = Clusters(keys, KafkaSession(brokers, config, ANSWER_SECONDS))
        offset_reader = OffsetReader(brokers, config=config, timeout_seconds=KAFKA_SECONDS)
        return cls(
            clusters=clusters,
            reader=FiguresReader(brokers, postgres, config=config, clusters=clusters),
            offset_reader=offset_reader,
            progress=ProgressWatch(
                changed,
                controller_silence=ControllerCheck(offset_reader.is_controller_reachable).silent_seconds,
                write_refusal=WriteCheck.of(postgres).refusal,
            ),
        )
