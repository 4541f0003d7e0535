"""The member `source.format`: the format of records."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, StringConstraints

from tidemill_contract.resource.kinds.any_json import ANY_JSON
from tidemill_contract.resource.kinds.base import Model

ColumnName = Annotated[str, StringConstraints(min_length=1, max_length=256)]


WITH_SCHEMAS = ("avro", "protobuf")
"""The types of records that cannot be read without the writer's schema."""


class SecretRef(Model):
    """A Secret in the pipeline's namespace."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$", max_length=253)] = Field(
        description="The name of the Secret."
    )


class RegistrySpec(Model):
    """A schema registry with Confluent's REST interface."""

    url: Annotated[str, StringConstraints(min_length=1, max_length=1024)] = Field(
        description="The address of the registry."
    )
    secret_ref: SecretRef | None = Field(
        None, description="A Secret with username, password, ca.crt, tls.crt and tls.key. All keys are optional."
    )

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports in the registry's URLs."""
        parts = [urlsplit(url.strip()) for url in self.url.split(",")]
        return tuple(sorted({part.port or (443 if part.scheme == "https" else 80) for part in parts}))


class FormatSpec(Model):
    """The format of the values of Kafka records."""

    type: Literal["json", "jsonSchema", "csv", "avro", "protobuf"] = Field("json", description="The encoding.")
    registry: RegistrySpec | None = Field(
        None, description="The schema registry with the schemas of avro and protobuf."
    )
    envelope: Literal["none", "cloudevents", "debezium", "connect"] = Field(
        "none", description="The envelope around the event."
    )
    deletes: Literal["ignore", "deadLetter", "event"] = Field(
        "deadLetter", description="What happens to tombstones and to records that delete a row."
    )
    columns: list[ColumnName] = Field(
        default_factory=list,
        max_length=200,
        description="Only for csv: the names of the columns. Default: the names of the fields, in order.",
    )
    delimiter: Annotated[str, StringConstraints(min_length=1, max_length=1)] = Field(
        ",", description="Only for csv: the character between cells."
    )


def _expand_text(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


Format = Annotated[FormatSpec, BeforeValidator(_expand_text), ANY_JSON]
"""A format, written as an object or only as a type, such as `avro`."""
