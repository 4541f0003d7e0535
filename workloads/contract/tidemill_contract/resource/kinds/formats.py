"""How the values of records are written: the member `source.format`."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, StringConstraints

from tidemill_contract.resource.kinds.any_json import ANY_JSON
from tidemill_contract.resource.kinds.base import Model

ColumnName = Annotated[str, StringConstraints(min_length=1, max_length=256)]


WITH_SCHEMAS = ("avro", "protobuf")
"""The types whose records cannot be read without the writer's schema."""


class SecretRef(Model):
    """A Secret in the pipeline's namespace."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$", max_length=253)] = Field(
        description="Its name."
    )


class RegistrySpec(Model):
    """A schema registry with Confluent's REST interface."""

    url: Annotated[str, StringConstraints(min_length=1, max_length=1024)] = Field(description="Its address.")
    secret_ref: SecretRef | None = Field(
        None, description="A Secret with username and password, ca.crt, tls.crt and tls.key, as far as they are needed."
    )

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports at which it is reached: the URL may be a list."""
        parts = [urlsplit(url.strip()) for url in self.url.split(",")]
        return tuple(sorted({part.port or (443 if part.scheme == "https" else 80) for part in parts}))


class FormatSpec(Model):
    """How the value of a record is written."""

    type: Literal["json", "jsonSchema", "csv", "avro", "protobuf"] = Field("json", description="The encoding.")
    registry: RegistrySpec | None = Field(None, description="Where the schemas of avro and protobuf are.")
    envelope: Literal["none", "cloudevents", "debezium", "connect"] = Field(
        "none", description="What is around the event."
    )
    deletes: Literal["ignore", "deadLetter", "event"] = Field(
        "deadLetter", description="What becomes of tombstones and of records that delete a row."
    )
    columns: list[ColumnName] = Field(
        default_factory=list, max_length=200, description="Of csv the columns; default: the fields."
    )
    delimiter: Annotated[str, StringConstraints(min_length=1, max_length=1)] = Field(
        ",", description="Of csv the character between cells."
    )


def _format(written: Any) -> Any:
    """The format with its short form, a text, written out."""
    return {"type": written} if isinstance(written, str) else written


Format = Annotated[FormatSpec, BeforeValidator(_format), ANY_JSON]
"""A format, or its type alone as a text."""
