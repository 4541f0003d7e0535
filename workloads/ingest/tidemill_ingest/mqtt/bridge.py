"""The MQTT bridge: connects to the broker, writes its messages to Kafka, and reports its health."""

from __future__ import annotations

import logging
import random
import threading
import time
from pathlib import Path
from typing import Any

from tidemill_chassis.health import Dependency, report
from tidemill_contract.resource.inputs.mqtt import TOPIC_HEADER, MqttSpec
from tidemill_contract.runtime import PipelineConfig
from tidemill_ingest.mqtt import metrics
from tidemill_ingest.mqtt.connection import Connection
from tidemill_ingest.mqtt.login import read_login
from tidemill_ingest.mqtt.outlet import Message, Outlet

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
"""The pause between two connections doubles from FIRST_PAUSE_SECONDS up to LONGEST_PAUSE_SECONDS."""
STABLE_SECONDS = 10.0
"""A connection counts as stable after this many seconds."""
FLUSH_SECONDS = 5.0
"""How long (seconds) a stopping bridge still writes received messages to Kafka."""
STUCK_SECONDS = 120.0
_IDLE_SECONDS, _BUSY_SECONDS = 0.1, 0.005


class Bridge:
    """The bridge of one pipeline. Any thread may call the methods other than `run`."""

    def __init__(self, config: PipelineConfig, spec: MqttSpec, outlet: Outlet, secret: Path | None) -> None:
        self._config, self._spec, self._outlet, self._secret = config, spec, outlet, secret
        self._client_id = spec.client_id or f"tidemill-{config.namespace}-{config.name}"
        self._stopping = threading.Event()
        self._connected, self._seen = False, False
        self._error = "not connected yet"
        self._alive_at = time.monotonic()

    def health(self) -> tuple[int, dict[str, Any]]:
        """Return the status code and body of /health."""
        broker = Dependency("mqtt", self._connected, True, "" if self._connected else self._error)
        extra = {
            "pipeline": f"{self._config.namespace}/{self._config.name}",
            "broker": f"{self._spec.host}:{self._spec.port}",
            "client_id": self._client_id,
            "in_flight": self._outlet.in_flight,
        }
        return report("mqtt", [self._outlet.dependency(), broker], extra)

    def ready(self) -> bool:
        """Return whether the MQTT broker and Kafka have both answered at least once."""
        return self._seen and self._outlet.seen

    def live(self) -> bool:
        """Return whether the bridge's thread has shown activity in the last STUCK_SECONDS."""
        return time.monotonic() - self._alive_at < STUCK_SECONDS

    def stop(self) -> None:
        """End `run` soon."""
        self._stopping.set()

    def run(self) -> None:
        """Write messages to Kafka until `stop()` is called."""
        self._outlet.start()
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
            while self._outlet.in_flight > self._spec.max_in_flight and not self._stopping.is_set():
                self._error = "messages of the previous connection are not in Kafka yet"
                self._wait(_IDLE_SECONDS)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        self._outlet.close()

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
            self._note(connected=False)
        connection.close()
        return time.monotonic() - since > STABLE_SECONDS

    def _step(self, connection: Connection) -> bool:
        goes_on = connection.step(_BUSY_SECONDS if self._outlet.in_flight else _IDLE_SECONDS)
        self._outlet.poll()
        self._note(connected=goes_on and connection.subscribed)
        return goes_on

    def _note(self, *, connected: bool) -> None:
        if connected and not self._connected:
            log.info("connected to %s:%d as %s", self._spec.host, self._spec.port, self._client_id)
        self._alive_at, self._connected = time.monotonic(), connected
        self._seen = self._seen or connected
        metrics.CONNECTED.set(connected)
        metrics.IN_FLIGHT.set(self._outlet.in_flight)

    def _flush(self, connection: Connection) -> None:
        deadline = time.monotonic() + FLUSH_SECONDS
        while self._outlet.in_flight and time.monotonic() < deadline:
            self._outlet.poll()
            time.sleep(_BUSY_SECONDS)
        if self._outlet.in_flight:
            log.warning("%d messages are not in Kafka; the broker sends these messages again", self._outlet.in_flight)

    def _receive(self, topic: str, payload: bytes, acknowledge: Any) -> None:
        name = topic.encode("utf-8", "surrogateescape")

        def written() -> None:
            metrics.ACKNOWLEDGED.inc()
            acknowledge()

        key = name if self._spec.key == "topic" else None
        self._outlet.write(Message(payload, key, [(TOPIC_HEADER, name)], written))

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stopping.is_set() and time.monotonic() < until:
            self._outlet.poll()
            self._note(connected=False)
            self._stopping.wait(min(_IDLE_SECONDS, seconds))
