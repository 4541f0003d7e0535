"""A processor's Kafka connections: to the cluster with the source topic, and to the platform's own Kafka."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from tidemill_chassis.kafka_clients import FAST_RECONNECT, platform_connection
from tidemill_contract.events.fields import MAX_RECORD_BYTES
from tidemill_contract.kafka_login import LoginError, client_settings, read_keys
from tidemill_contract.runtime import PipelineConfig, WorkloadSettings

REQUEST_SECONDS = 5.0
"""The timeout of a request to Kafka, in seconds."""
_SILENCE_SECONDS = 20.0

PRODUCER_TUNING: Mapping[str, Any] = {
    "acks": "all",
    "enable.idempotence": True,
    "linger.ms": 20,
    # Request delivery reports only for failures, because each report takes time.
    "delivery.report.only.error": True,
    "compression.type": "lz4",
    # The operator sets `max.message.bytes` of the output topics to MAX_RECORD_BYTES.
    "message.max.bytes": MAX_RECORD_BYTES,
    "partitioner": "murmur2_random",
    **FAST_RECONNECT,
    "log_level": 3,
}


class SourceLogin:
    """The client settings for the Kafka cluster with the source topic.

    Attributes:
        servers: the brokers in `source.kafka`, or an empty string if the platform's Kafka has the source topic.
        error: what is wrong with the Secret, or an empty string.
    """

    def __init__(self, settings: WorkloadSettings, config: PipelineConfig) -> None:
        self._settings, self._kafka = settings, config.spec.source.kafka
        self.servers = ",".join(self._kafka.servers) if self._kafka is not None else ""
        self.error = ""
        self._last_read: dict[str, Any] | None = None

    def current(self) -> dict[str, Any]:
        """Return the client settings, without a login if the Secret is invalid."""
        self._last_read = self._read()
        return self._last_read

    def has_changed(self) -> bool:
        """Return whether the settings have changed since the last call of `current`."""
        return self._kafka is not None and self._read() != self._last_read

    def _read(self) -> dict[str, Any]:
        if self._kafka is None:
            return platform_connection(self._settings)
        folder = self._settings.source_kafka_dir
        try:
            login = client_settings(read_keys(folder)) if folder is not None else {}
        except LoginError as error:
            self.error, login = f"Secret {self._kafka.secret}: {error}", {}
        else:
            self.error = ""
        return {"bootstrap.servers": self.servers, **login}


class PlatformKafka:
    """The platform's own Kafka, to which results are published."""

    def __init__(self, settings: WorkloadSettings) -> None:
        self._connection = platform_connection(settings)
        self._admin: AdminClient | None = None
        self._answered_at = time.monotonic()
        self.error = ""

    def create_producer(self) -> Producer:
        """Return a Kafka producer."""
        return Producer({**self._connection, **PRODUCER_TUNING})

    def probe(self) -> None:
        """Check whether Kafka answers.

        Raises:
            KafkaException, TimeoutError: Kafka does not answer in time.
        """
        if self._admin is None:
            self._admin = AdminClient({**FAST_RECONNECT, **self._connection, "log_level": 0})
        try:
            self._admin.describe_cluster(request_timeout=REQUEST_SECONDS).result(REQUEST_SECONDS + 1)
        except (KafkaException, TimeoutError) as error:
            self._admin = None  # A new client reads the addresses of the brokers again.
            if time.monotonic() - self._answered_at >= _SILENCE_SECONDS:
                cause = error.args[0] if error.args else None
                self.error = cause.str() if isinstance(cause, KafkaError) else "no answer in time"
            raise
        self._answered_at, self.error = time.monotonic(), ""
