"""The member `source.mqtt`: an MQTT broker from which Tidemill writes messages to the source topic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, StringConstraints

from tidemill_contract.resource.faults import Fault
from tidemill_contract.resource.kinds.base import Model
from tidemill_contract.resource.kinds.formats import SecretRef

TOPIC_HEADER = "mqtt-topic"
"""The header of a Kafka record that contains the MQTT topic of the message."""
_PORTS = {"mqtt": 1883, "mqtts": 8883}
_MAX_TOPIC_BYTES = 65_535

TopicFilter = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class MqttSpec(Model):
    """An MQTT broker, and the topics to read."""

    broker: Annotated[str, StringConstraints(min_length=1, max_length=512)] = Field(
        description="Address of the broker: mqtt://host:1883, or mqtts://host:8883 with TLS."
    )
    topics: list[TopicFilter] = Field(
        min_length=1, max_length=64, description="Topics to subscribe to, with the wildcards + and #."
    )
    qos: int = Field(
        1,
        ge=0,
        le=1,
        description="1: the broker repeats a message until Tidemill has stored it in Kafka. 0: messages may be lost.",
    )
    version: Literal["v5", "v3.1.1"] = Field("v5", description="Version of the protocol.")
    client_id: Annotated[str, StringConstraints(pattern=r"^[!-~]{1,128}$", max_length=128)] | None = Field(
        None, description="Client id, which names the session at the broker. Default: tidemill-<namespace>-<name>."
    )
    key: Literal["topic", "none"] = Field(
        "topic",
        description="Key of the Kafka record. topic: the MQTT topic, so that messages of a topic stay in order. none:"
        " no key.",
    )
    max_in_flight: int = Field(
        1000, ge=1, le=65_535, description="Maximum number of messages that are received but not yet in Kafka."
    )
    secret_ref: SecretRef | None = Field(
        None,
        description="A Secret with username, password, ca.crt, tls.crt and tls.key. All keys are optional.",
    )

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return urlsplit(self.broker).scheme == "mqtts"

    @property
    def host(self) -> str:
        """The broker's name or IP address."""
        return urlsplit(self.broker).hostname or ""

    @property
    def port(self) -> int:
        """The port of the broker."""
        parts = urlsplit(self.broker)
        return parts.port or _PORTS.get(parts.scheme, 1883)

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """The topic filters to subscribe to, without those that another filter covers."""
        return tuple(each for each in self.topics if not any(_covers(o, each) for o in self.topics if o != each))

    def faults(self, path: str) -> Iterator[Fault]:
        """Yield a fault for each wrong address or topic."""
        yield from _address_faults(self.broker, f"{path}.broker")
        for index, topic in enumerate(self.topics):
            fault = _topic_fault(topic)
            if fault is not None:
                yield Fault(f"{path}.topics[{index}]", topic, *fault)
            elif topic in self.topics[:index]:
                yield Fault(
                    f"{path}.topics[{index}]", topic, "the topic is listed twice", "remove one of the two entries"
                )


def _covers(wide: str, narrow: str) -> bool:
    """Return True if the topic filter `wide` matches all topics of `narrow`."""
    levels, others = wide.split("/"), narrow.split("/")
    if others[0].startswith("$") and levels[0] in ("+", "#"):
        return False
    for at, level in enumerate(levels):
        if level == "#":  # `a/#` also matches `a`
            return True
        if at == len(others) or others[at] == "#" or level not in ("+", others[at]):
            return False
    return len(levels) == len(others)


def _address_faults(broker: str, path: str) -> Iterator[Fault]:
    try:
        parts: SplitResult | None = urlsplit(broker)
        wrong = parts is None or parts.scheme not in _PORTS or not parts.hostname or parts.port == 0
    except ValueError:
        parts, wrong = None, True
    if wrong or parts is None:
        yield Fault(path, broker, "is not the address of a broker", "write mqtt://host:1883 or mqtts://host:8883")
    elif parts.username is not None or parts.password is not None:
        message, remedy = (
            "contains a password, which everybody could read",
            "put the password into a Secret, and set secretRef",
        )
        yield Fault(path, f"{parts.scheme}://…@{parts.hostname}", message, remedy)
    elif parts.path.strip("/") or parts.query or parts.fragment:
        yield Fault(path, broker, "contains more than a host and a port", "list MQTT topics in the member topics")


def _topic_fault(topic: str) -> tuple[str, str] | None:
    levels = topic.split("/")
    if "\0" in topic or len(topic.encode("utf-8", "replace")) > _MAX_TOPIC_BYTES:
        return "is not an MQTT topic", "separate levels by /, such as plant/+/temp"
    if any("#" in level and (level != "#" or at != len(levels) - 1) for at, level in enumerate(levels)):
        return "# matches all further levels", "write # alone, as the last level"
    if any("+" in level and level != "+" for level in levels):
        return "+ matches a whole level", "write + alone between slashes, such as plant/+/temp"
    if levels[0] == "$share":
        return (
            "shared subscriptions are not supported, because one process reads all messages",
            "write the topic without $share",
        )
    return None
