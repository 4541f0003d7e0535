"""The model of `spec.lookups`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from tidemill_contract.decimals import DECIMAL, MAX_DIGITS, decimal_type
from tidemill_contract.duration import Duration, parse_ms
from tidemill_contract.functions.base import FieldType, Name
from tidemill_contract.resource.kinds.any_json import Path
from tidemill_contract.resource.kinds.base import Model
from tidemill_contract.resource.kinds.formats import SecretRef
from tidemill_contract.resource.source import FieldSpec, TopicName

REFRESH = "1m"
"""The default interval for reading a table."""
SUFFIXES = (".csv", ".json", ".ndjson", ".jsonl")
"""The suffixes of files that a lookup can read. The suffix determines the format."""
ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$", max_length=253)]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][-._A-Za-z0-9]{0,252}$", max_length=253)]
TableName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)?$", max_length=127)
]
KeyName = Annotated[str, StringConstraints(pattern=r'^[^"\\\x00-\x1f\x7f]+$', max_length=100)]
SourceKind = Literal["configMap", "table", "query", "topic"]


class LookupField(Model):
    """A field that events get from a lookup."""

    name: Name = Field(
        description="Name of the field, which must differ from the names of the event's fields and of derives."
    )
    type: FieldType = Field(description="Type of the value, as in source.fields.")
    path: Path | None = Field(
        None, description="Name of the column, or path in a JSON row. Default: the name of the field."
    )
    format: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = Field(
        None, description="Format of a timestamp, as in source.fields."
    )
    zone: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = Field(
        None, description="Time zone of timestamps that contain no zone, as in source.fields."
    )
    precision: int | None = Field(
        None, ge=1, le=MAX_DIGITS, description=f"Maximum number of digits of a decimal. Default: {MAX_DIGITS}."
    )
    scale: int | None = Field(
        None,
        ge=0,
        le=MAX_DIGITS,
        description="Number of digits of a decimal after the point. Every decimal needs a scale.",
    )

    @property
    def kind(self) -> str:
        """The field's type, including a decimal's scale."""
        return self.type if self.type != DECIMAL or self.scale is None else decimal_type(self.scale)

    @property
    def row_field(self) -> FieldSpec:
        """The `FieldSpec` that reads this field from rows."""
        return FieldSpec(
            name=self.name,
            type=self.type,
            path=self.path,
            format=self.format,
            zone=self.zone,
            precision=self.precision,
            scale=self.scale,
        )


class LookupSource(Model):
    """The source of a lookup's rows: a ConfigMap file, a Postgres table or query, or a topic."""

    config_map: ObjectName | None = Field(
        None,
        description="A ConfigMap in the pipeline's namespace. With tidemill up, the file can be in the folder of the"
        " pipeline file.",
    )
    file: FileName | None = Field(
        None, description="The file of the ConfigMap: .csv with a header line, .json with an array, .ndjson or .jsonl."
    )
    table: TableName | None = Field(None, description="A table or view of Postgres, such as shop.products.")
    query: Annotated[str, StringConstraints(min_length=1, max_length=8192)] | None = Field(
        None, description="A SELECT of Postgres, in place of table."
    )
    secret_ref: SecretRef | None = Field(
        None,
        description="With table or query: a Secret with uri, or with host, port, dbname, username and password. If the"
        " Secret has ca.crt, the server's certificate is verified.",
    )
    refresh: Duration | None = Field(
        None, description=f"With table or query: how often the rows are read. Default: {REFRESH}."
    )
    topic: TopicName | None = Field(
        None,
        description="A compacted Kafka topic. The record's key is the row's key. The record's value is the row as"
        " JSON.",
    )
    key: KeyName | None = Field(
        None, description="With configMap, table or query: the column with the key. Each row needs a different key."
    )

    @property
    def kind(self) -> SourceKind | None:
        """The kind of the source, such as `table`, or None if the lookup has no source."""
        kinds: tuple[SourceKind, ...] = ("configMap", "table", "query", "topic")
        given = (self.config_map, self.table, self.query, self.topic)
        return next((kind for kind, value in zip(kinds, given, strict=True) if value is not None), None)

    @property
    def refresh_ms(self) -> int:
        """The interval for reading a table, in milliseconds."""
        return parse_ms(self.refresh or REFRESH)


def _allow_true_key(schema: dict[str, Any]) -> None:
    """Allow the key `true` in the schema, because kubectl reads an unquoted `on` as `true`."""
    description = "Another name for the key 'on', because YAML 1.1 reads 'on' without quotes as true."
    schema["properties"]["true"] = {**schema["properties"]["on"], "description": description}
    schema["required"].remove("on")


class LookupSpec(Model):
    """Reference data that is joined to events before the filter and the derives."""

    model_config = ConfigDict(json_schema_extra=_allow_true_key)

    @model_validator(mode="before")
    @classmethod
    def _rename_true_key(cls, value: Any) -> Any:
        """Rename the key true to `on`, because YAML 1.1 reads `on` without quotes as true."""
        if not isinstance(value, dict) or "on" in value:
            return value
        return {"on" if key is True or key == "true" else key: value for key, value in value.items()}

    name: Name = Field(description="Name of the lookup.")
    on: Name = Field(description="The field with the key: a field of the event or of an earlier lookup.")
    source: LookupSource = Field(
        alias="from",
        description="Source of the rows: a file (configMap, file, key), Postgres (table or query, key, secretRef,"
        " refresh) or a compacted topic (topic).",
    )
    fields: list[LookupField] = Field(
        min_length=1,
        max_length=32,
        description="The fields of the row that the event gets. If no row has the key, the fields are null.",
    )
