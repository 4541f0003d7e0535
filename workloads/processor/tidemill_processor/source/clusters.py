"""The connections of a processor: to the Kafka cluster with the source topic, and to the platform's own Kafka.

Results, anomalies and dead letters go to the platform's own Kafka. The source topic is there too, unless the spec has
`source.kafka`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from tidemill_chassis.kafka_clients import RECONNECTING, own_connection
from tidemill_contract.events.fields import MAX_RECORD_BYTES
from tidemill_contract.kafka_login import LoginError, client_settings, read_keys
from tidemill_contract.runtime import PipelineConfig, WorkloadSettings

ASK_SECONDS = 5.0
"""The timeout of a request to Kafka."""
_SILENCE_SECONDS = 20.0

PRODUCER_TUNING: Mapping[str, Any] = {
    "acks": "all",
    "enable.idempotence": True,
    "linger.ms": 20,
    # Report only failures: a delivery report costs as much as encoding the record.
    "delivery.report.only.error": True,
    "compression.type": "lz4",
    # The topics have the same limit. A window with long texts makes a long record. If it exceeds the limit, it is
    # published with null for its longest metrics, or skipped.
    "message.max.bytes": MAX_RECORD_BYTES,
    "partitioner": "murmur2_random",
    **RECONNECTING,
    "log_level": 3,
}


class SourceLogin:
    """The client settings for the Kafka cluster with the source topic.

    They change when the Secret of `source.kafka` changes.

    Attributes:
        servers: the brokers that `source.kafka` names, or empty.
        error: what is wrong with the Secret, or empty.
    """

    def __init__(self, settings: WorkloadSettings, config: PipelineConfig) -> None:
        self._settings, self._kafka = settings, config.spec.source.kafka
        self.servers = ",".join(self._kafka.servers) if self._kafka is not None else ""
        self.error = ""
        self._known: dict[str, Any] | None = None

    def current(self) -> dict[str, Any]:
        """Return the client settings, and remember them. If the Secret is wrong, they contain no login."""
        self._known = self._read()
        return self._known

    def changed(self) -> bool:
        """Return whether the settings differ from those that `current` last returned. Only a Secret can change them."""
        return self._kafka is not None and self._read() != self._known

    def _read(self) -> dict[str, Any]:
        if self._kafka is None:
            return own_connection(self._settings)
        folder = self._settings.source_kafka_dir
        try:
            login = client_settings(read_keys(folder)) if folder is not None else {}
        except LoginError as error:
            self.error, login = f"Secret {self._kafka.secret}: {error}", {}
        else:
            self.error = ""
        return {"bootstrap.servers": self.servers, **login}


class Outputs:
    """The platform's own Kafka, to which records are published.

    Attributes:
        error: why it does not answer, or empty.
    """

    def __init__(self, settings: WorkloadSettings) -> None:
        self._connection = own_connection(settings)
        self._admin: AdminClient | None = None
        self._answered_at = time.monotonic()
        self.error = ""

    def producer(self) -> Producer:
        """Return a producer.

        Do not use the producer of Quix Streams: it polls for each record, which takes a fifth of the process's CPU
        time.
        """
        return Producer({**self._connection, **PRODUCER_TUNING})

    def look(self) -> None:
        """Check whether Kafka answers. One thread calls this regularly. A short silence is not an error.

        Raises:
            KafkaException, TimeoutError: Kafka does not answer in time.
        """
        if self._admin is None:
            self._admin = AdminClient({**RECONNECTING, **self._connection, "log_level": 0})
        try:
            self._admin.describe_cluster(request_timeout=ASK_SECONDS).result(ASK_SECONDS + 1)
        except (KafkaException, TimeoutError) as error:
            self._admin = None  # it may know outdated addresses
            if time.monotonic() - self._answered_at >= _SILENCE_SECONDS:
                cause = error.args[0] if error.args else None
                self.error = cause.str() if isinstance(cause, KafkaError) else "no answer in time"
            raise
        self._answered_at, self.error = time.monotonic(), ""
