"""Creates the reader for a format, and the client of the schema registry."""

from __future__ import annotations

from collections.abc import Collection

from tidemill_contract.resource.kinds.formats import WITH_SCHEMAS
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import WorkloadSettings
from tidemill_processor.formats.registry import Registry
from tidemill_processor.formats.schema_reader import SchemaReader


def registry_of(spec: PipelineSpec, settings: WorkloadSettings) -> Registry | None:
    """Return the client of a pipeline's schema registry, or None if the format needs no registry."""
    record_format = spec.source.record_format
    if record_format.registry is None or record_format.type not in WITH_SCHEMAS:
        return None
    form = "serialized" if record_format.type == "protobuf" else None
    return Registry(record_format.registry, settings.registry_dir, form=form)


def schema_reader(
    spec: PipelineSpec, registry: Registry, *, exact: bool, needed: Collection[str] | None
) -> SchemaReader:
    """Return the reader for records with schemas. `SchemaReader` documents the arguments."""
    # Import lazily, because pipelines with other formats need neither fastavro nor Protobuf.
    if spec.source.record_format.type == "protobuf":
        from tidemill_processor.formats.protobuf import ProtobufReader

        return ProtobufReader(spec, registry, exact=exact, needed=needed)
    from tidemill_processor.formats.avro import AvroReader

    return AvroReader(spec, registry, exact=exact, needed=needed)
