"""The MQTT bridge: connects to the broker, writes its messages to Kafka, and reports its health."""

from __future__ import annotations

import logging
import random
import threading
import time
from pathlib import Path
from typing import Any

from tidemill_chassis.health import Dependency, health_report
from tidemill_contract.resource.inputs.mqtt import TOPIC_HEADER, MqttSpec
from tidemill_contract.runtime import PipelineConfig
from tidemill_ingest.mqtt import metrics
from tidemill_ingest.mqtt.connection import Connection
from tidemill_ingest.mqtt.kafka_writer import KafkaWriter, Message
from tidemill_ingest.mqtt.login import read_login

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
"""The pause between two connections doubles from FIRST_PAUSE_SECONDS up to LONGEST_PAUSE_SECONDS."""
STABLE_SECONDS = 10.0
"""A connection counts as stable after this many seconds."""
FLUSH_SECONDS = 5.0
"""How long (seconds) a stopping bridge still writes received messages to Kafka."""
STUCK_SECONDS = 120.0
_IDLE_POLL_SECONDS, _BUSY_POLL_SECONDS = 0.1, 0.005


class Bridge:
    """The bridge of one pipeline. Any thread may call the methods other than `run`."""

    def __init__(self, config: PipelineConfig, spec: MqttSpec, kafka_writer: KafkaWriter, secret: Path | None) -> None:
        self._config, self._spec, self._kafka_writer, self._secret = config, spec, kafka_writer, secret
        self._client_id = spec.client_id or f"tidemill-{config.namespace}-{config.name}"
        self._stopping = threading.Event()
        self._connected, self._has_connected = False, False
        self._error = "not connected yet"
        self._alive_at = time.monotonic()

    def health(self) -> tuple[int, dict[str, Any]]:
        """Return the status code and body of /health."""
        broker = Dependency("mqtt", self._connected, True, "" if self._connected else self._error)
        extra = {
            "pipeline": f"{self._config.namespace}/{self._config.name}",
            "broker": f"{self._spec.host}:{self._spec.port}",
            "client_id": self._client_id,
            "in_flight": self._kafka_writer.in_flight,
        }
        return health_report("mqtt", [self._kafka_writer.dependency(), broker], extra)

    def ready(self) -> bool:
        """Return whether the MQTT broker and Kafka have both answered at least once."""
        return self._has_connected and self._kafka_writer.has_answered

    def live(self) -> bool:
        """Return whether the bridge's thread has shown activity in the last STUCK_SECONDS."""
        return time.monotonic() - self._alive_at < STUCK_SECONDS

    def stop(self) -> None:
        """End `run` soon."""
        self._stopping.set()

    def run(self) -> None:
        """Write messages to Kafka until `stop()` is called."""
        self._kafka_writer.start()
        pause = FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            stable = self._connect()
            if self._stopping.is_set():
                break
            pause = FIRST_PAUSE_SECONDS if stable else pause
            log.warning("%s:%d: %s; connecting again", self._spec.host, self._spec.port, self._error)
            self._wait(pause * random.uniform(0.8, 1.2))  # noqa: S311 - spreads load, no secret
            # Wait until Kafka has the earlier messages. Otherwise, messages that the MQTT broker resends could fill the
            # memory.
            while self._kafka_writer.in_flight > self._spec.max_in_flight and not self._stopping.is_set():
                self._error = "messages of the previous connection are not in Kafka yet"
                self._wait(_IDLE_POLL_SECONDS)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        self._kafka_writer.close()

    def _connect(self) -> bool:
        """Connect once, and serve the connection. Return whether the connection lasted longer than STABLE_SECONDS."""
        try:
            login = read_login(self._secret, tls=self._spec.tls)
            connection = Connection(self._spec, self._client_id, login, self._receive)
            connection.open()
        except (OSError, ValueError) as error:
            self._error = str(error) or type(error).__name__
            self._alive_at = time.monotonic()
            return False
        since = time.monotonic()
        try:
            while not self._stopping.is_set() and self._step(connection):
                pass
            if self._stopping.is_set():
                self._flush(connection)
        finally:
            self._error = connection.error or self._error
            self._update_state(connected=False)
        connection.close()
        return time.monotonic() - since > STABLE_SECONDS

    def _step(self, connection: Connection) -> bool:
        is_open = connection.step(_BUSY_POLL_SECONDS if self._kafka_writer.in_flight else _IDLE_POLL_SECONDS)
        self._kafka_writer.poll()
        self._update_state(connected=is_open and connection.subscribed)
        return is_open

    def _update_state(self, *, connected: bool) -> None:
        if connected and not self._connected:
            log.info("connected to %s:%d as %s", self._spec.host, self._spec.port, self._client_id)
        self._alive_at, self._connected = time.monotonic(), connected
        self._has_connected = self._has_connected or connected
        metrics.CONNECTED.set(connected)
        metrics.IN_FLIGHT.set(self._kafka_writer.in_flight)

    def _flush(self, connection: Connection) -> None:
        deadline = time.monotonic() + FLUSH_SECONDS
        while self._kafka_writer.in_flight and time.monotonic() < deadline:
            self._kafka_writer.poll()
            time.sleep(_BUSY_POLL_SECONDS)
        if self._kafka_writer.in_flight:
            log.warning(
                "%d messages are not in Kafka; the broker sends these messages again", self._kafka_writer.in_flight
            )

    def _receive(self, topic: str, payload: bytes, acknowledge: Any) -> None:
        topic_bytes = topic.encode("utf-8", "surrogateescape")

        def on_written() -> None:
            metrics.ACKNOWLEDGED.inc()
            acknowledge()

        key = topic_bytes if self._spec.key == "topic" else None
        self._kafka_writer.write(Message(payload, key, [(TOPIC_HEADER, topic_bytes)], on_written))

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stopping.is_set() and time.monotonic() < until:
            self._kafka_writer.poll()
            self._update_state(connected=False)
            self._stopping.wait(min(_IDLE_POLL_SECONDS, seconds))
