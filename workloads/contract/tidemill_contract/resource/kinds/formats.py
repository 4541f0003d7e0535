"""How the values of records are written: the member `source.format`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from tidemill_contract.resource.kinds.any_json import ANY_JSON
from tidemill_contract.resource.kinds.base import Model

ColumnName = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class FormatSpec(Model):
    """How the value of a record is written."""

    type: Literal["json", "jsonSchema", "csv"] = Field("json", description="The encoding.")
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
