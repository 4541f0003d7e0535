"""The member `source.kafka`: the Kafka cluster of the source topic."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Annotated

from pydantic import Field, StringConstraints

from tidemill_contract.resource.faults import ABSENT, Fault
from tidemill_contract.resource.kinds.base import Model
from tidemill_contract.resource.kinds.formats import SecretRef

_SERVER = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")
_MAX_PORT = 65_535


class KafkaSpec(Model):
    """A Kafka cluster that is not the platform's own."""

    bootstrap_servers: Annotated[str, StringConstraints(min_length=1, max_length=1024)] = Field(
        description="Addresses of brokers, each as host:port, separated by commas."
    )
    secret_ref: SecretRef | None = Field(
        None,
        description="A Secret with the client settings: security.protocol, sasl.mechanism, sasl.username,"
        " sasl.password, ca.crt, tls.crt and tls.key. All keys are optional.",
    )

    @property
    def servers(self) -> tuple[str, ...]:
        """The brokers, each as `host:port`."""
        return tuple(server.strip() for server in self.bootstrap_servers.split(","))

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports of the brokers."""
        return tuple(sorted({int(server.rpartition(":")[2]) for server in self.servers}))

    @property
    def secret(self) -> str:
        """The name of the Secret, or an empty string."""
        return self.secret_ref.name if self.secret_ref is not None else ""

    def faults(
        self, topic: str | None, *, managed: bool, outputs: Collection[str], multi_topic: bool = False
    ) -> Iterator[Fault]:
        """Yield a fault for each broken rule about the cluster and the source topic.

        Args:
            topic: the name of the source topic, or None if the spec has no `source.topic.name`.
            managed: the value of `source.topic.managed`.
            outputs: the names of the topics to which the pipeline writes.
            multi_topic: whether the spec has `source.topics` or `source.topicPattern`.
        """
        for server in self.servers:
            match = _SERVER.fullmatch(server)
            if match is None or not 0 < int(match[1]) <= _MAX_PORT:
                remedy = "write host:port; separate several brokers by commas"
                yield Fault("spec.source.kafka.bootstrapServers", server, "is not the address of a broker", remedy)
        if multi_topic:
            return
        if managed:
            message = "Tidemill does not create or alter topics on another Kafka cluster"
            yield Fault("spec.source.topic.managed", True, message, "write managed: false")
        if topic is None:
            message, remedy = "a topic on another Kafka cluster has no default name", "write the topic's name"
            yield Fault("spec.source.topic.name", ABSENT, message, remedy)
        elif topic in outputs:
            message = "this pipeline writes its output to a topic of the same name on the platform's own Kafka"
            yield Fault("spec.source.topic.name", topic, message, "give the pipeline another name")
