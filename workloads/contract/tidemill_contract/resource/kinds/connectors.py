"""Connectors of Kafka Connect: the member `source.connectors`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from tidemill_contract.functions.base import Name
from tidemill_contract.resource.kinds.base import Model
from tidemill_contract.resource.kinds.formats import SecretRef

ConfigKey = Annotated[str, StringConstraints(min_length=1, max_length=249)]
ConfigText = Annotated[str, StringConstraints(max_length=4096)]


class SecretKeyRef(SecretRef):
    """One key of a Secret in the pipeline's namespace."""

    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]{1,253}$", max_length=253)] = Field(
        description="The key in the Secret."
    )


class ConnectorSpec(Model):
    """A source connector that Kafka Connect runs for the pipeline."""

    name: Name = Field(description="Name of the connector. The name in Kafka Connect is <namespace>.<pipeline>.<name>.")
    class_name: Annotated[
        str,
        StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)*$", max_length=249),
    ] = Field(
        alias="class", description="Java class of the connector. The class must be installed on Connect's workers."
    )
    tasks: int = Field(1, ge=1, le=64, description="Maximum number of tasks.")
    paused: bool = Field(False, description="True: the connector stops reading, and keeps its position.")
    config: dict[ConfigKey, ConfigText] = Field(
        default_factory=dict, max_length=128, description="Configs of the connector that are not secret."
    )
    secrets: dict[ConfigKey, SecretKeyRef] = Field(
        default_factory=dict,
        max_length=32,
        description="Further configs with values from Secrets, such as database.password. Connect's workers read"
        " the Secrets.",
    )

    @property
    def is_debezium(self) -> bool:
        """Whether the connector is a Debezium connector, which writes change events."""
        return self.class_name.startswith("io.debezium.")

    @property
    def transforms(self) -> tuple[str, ...]:
        """The names of the transforms in `config`, in order."""
        return split_list(self.config.get("transforms", ""))


def split_list(text: str) -> tuple[str, ...]:
    """Return the items of a comma-separated config, without surrounding blanks."""
    return tuple(item.strip() for item in text.split(",") if item.strip())
