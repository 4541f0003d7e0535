"""One connection to an MQTT broker.

A message of QoS 1 is acknowledged only when Kafka has the message. The broker repeats unacknowledged messages in the
next connection.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from tidemill_contract.resource.inputs.mqtt import MqttSpec
from tidemill_ingest.mqtt import metrics
from tidemill_ingest.mqtt.login import Login

log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 30
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 10.0
"""CONNECT_SECONDS limits the wait for a connection. ANSWER_SECONDS limits the time from then until
the broker has answered CONNECT and SUBSCRIBE."""
SESSION_SECONDS = 7 * 24 * 3600
"""How long (seconds) an MQTT 5 broker keeps the session of a disconnected bridge."""
_ONLY_NEW = 1
"""The retain handling of MQTT 5: retained messages are sent for new subscriptions only."""
_FAILURE = 128

Receive = Callable[[str, bytes, Callable[[], None]], None]
"""A function to handle a message. Its parameters are topic, payload, and a function to acknowledge the message."""


@dataclass(eq=False)
class _InFlight:
    mid: int
    qos: int
    written: bool = False


class Connection:
    """A connection to the broker, for use in one thread.

    Attributes:
        subscribed: whether the broker has accepted the subscriptions.
        error: why the connection failed or ended, or an empty text.
    """

    def __init__(self, spec: MqttSpec, client_id: str, login: Login, receive: Receive) -> None:
        """Prepare the connection without connecting."""
        self._spec, self._receive, self._is_v5 = spec, receive, spec.version == "v5"
        self._unacknowledged: deque[_InFlight] = deque()
        self._matches = lru_cache(maxsize=1_000)(self._is_wanted)
        self._opened_at = 0.0
        self.subscribed, self.error = False, ""
        client = self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if self._is_v5 else False,
            protocol=paho.MQTTv5 if self._is_v5 else paho.MQTTv311,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_SECONDS
        if login.username is not None:
            client.username_pw_set(login.username, login.password)
        if login.context is not None:
            client.tls_set_context(login.context)
        client.on_connect, client.on_subscribe = self._on_connect, self._on_subscribe
        client.on_message, client.on_disconnect = self._on_message, self._on_disconnect

    def open(self) -> None:
        """Connect to the broker.

        Raises:
            OSError: the broker cannot be reached.
        """
        properties = None
        if self._is_v5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = SESSION_SECONDS
            properties.ReceiveMaximum = self._spec.max_in_flight
        start: Any = {"clean_start": False} if self._is_v5 else {}
        self._opened_at = time.monotonic()
        self._client.connect(self._spec.host, self._spec.port, KEEP_ALIVE_SECONDS, properties=properties, **start)

    @property
    def in_flight(self) -> int:
        """The number of messages that are not acknowledged yet."""
        return len(self._unacknowledged)

    def step(self, seconds: float) -> bool:
        """Exchange data with the broker for at most `seconds`. Return False if the connection has failed or ended."""
        # MQTT 3.1.1 has no limit on unacknowledged messages. The bridge stops reading, and TCP makes the broker wait.
        if len(self._unacknowledged) < 2 * self._spec.max_in_flight:
            code = self._client.loop(seconds)
        else:
            time.sleep(seconds)
            code = self._client.loop_misc()
            if code == MQTTErrorCode.MQTT_ERR_SUCCESS and self._client.want_write():
                code = self._client.loop_write()
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self.error = self.error or f"the connection has ended: {paho.error_string(code)}"
        elif not self.subscribed and not self.error and time.monotonic() - self._opened_at > ANSWER_SECONDS:
            self.error = f"the broker did not answer within {ANSWER_SECONDS:.0f} s"
        if self.error:
            self.subscribed = False
        return not self.error

    def close(self) -> None:
        """Disconnect, but keep the session at the broker."""
        self.subscribed, self.error = False, self.error or "the connection is closed"
        self._client.disconnect()
        for _ in range(3):
            if self._client.loop(0.05) != MQTTErrorCode.MQTT_ERR_SUCCESS:
                break

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, code: Any, _properties: Any) -> None:
        if code.is_failure:
            self.error = f"the broker refuses the connection: {code}"
            return
        qos, topics = self._spec.qos, self._spec.subscriptions
        subscriptions: list[Any] = [(topic, qos) for topic in topics]
        if self._is_v5:
            options = SubscribeOptions(qos=qos, retainHandling=_ONLY_NEW)
            subscriptions = [(topic, options) for topic in topics]
        self._client.subscribe(subscriptions)
        # Unsubscribe from topic filters that a broader filter covers. The MQTT broker may have stored these
        # subscriptions in an earlier session.
        if covered := [topic for topic in self._spec.topics if topic not in topics]:
            self._client.unsubscribe(covered)

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, codes: Any, _properties: Any) -> None:
        refused = [
            topic for topic, code in zip(self._spec.subscriptions, codes, strict=False) if code.value >= _FAILURE
        ]
        if refused:
            reason = next(code for code in codes if code.value >= _FAILURE)
            self.error = f"the broker refuses the topic {refused[0]}: {reason}"
            return
        if any(code.value < self._spec.qos for code in codes):
            log.warning("the broker grants only QoS 0, so messages may be lost")
        self.subscribed = True

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        in_flight = _InFlight(message.mid, message.qos)
        self._unacknowledged.append(in_flight)
        metrics.RECEIVED.inc()
        # Some brokers accept topics with invalid UTF-8. For these topics, `message.topic` raises an error.
        topic = message._topic.decode("utf-8", "surrogateescape")
        if not self._matches(topic):
            metrics.SKIPPED.inc()
            self._mark_written(in_flight)
            return
        self._receive(topic, bytes(message.payload), lambda: self._mark_written(in_flight))

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, code: Any, _properties: Any) -> None:
        self.error = self.error or f"the connection has ended: {code}"

    def _is_wanted(self, topic: str) -> bool:
        return any(paho.topic_matches_sub(topic_filter, topic) for topic_filter in self._spec.topics)

    def _mark_written(self, in_flight: _InFlight) -> None:
        in_flight.written = True
        while self._unacknowledged and self._unacknowledged[0].written:
            first = self._unacknowledged.popleft()
            if first.qos and not self.error:
                self._client.ack(first.mid, first.qos)
