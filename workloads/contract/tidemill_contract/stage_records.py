"""Pipelines with a Python stage: checks of events by ingest, and the stage's header `tidemill-origin`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tidemill_contract.events.fields import with_fields
from tidemill_contract.resource.spec import PipelineSpec

ORIGIN_HEADER = "tidemill-origin"
STAGE_RUNNING = "runs"
"""A running Python stage commits this offset metadata. A waiting stage commits the reason for waiting instead."""

Headers = Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True)
class Origin:
    """The source record from which the Python stage made a record.

    The partition number is not stored, because the new record has the same partition number.

    Attributes:
        topic_id: the id of the source topic.
        offset: the source record's offset.
        time_ms: the source record's timestamp (epoch ms), or a negative number for a record without a timestamp.
    """

    topic_id: str
    offset: int
    time_ms: int

    def encode(self) -> bytes:
        """Return the value of the header `tidemill-origin`."""
        return f"{self.topic_id}/{self.offset}/{self.time_ms}".encode()


def read_origin(headers: Headers | None) -> Origin | None:
    """Return the origin of a record in the stage topic. If the headers contain no origin, return None."""
    if not headers or headers[-1][0] != ORIGIN_HEADER:
        return None
    try:
        # The id of a topic is base64, so it may contain a slash.
        topic_id, offset, time_ms = (headers[-1][1] or b"").decode().rsplit("/", 2)
        return Origin(topic_id, int(offset), int(time_ms))
    except ValueError:
        return None


def ingest_spec(spec: PipelineSpec) -> PipelineSpec:
    """Return the spec by which ingest validates events.

    With a Python stage, ingest checks only fields from headers and the field of the record key. Every event must be a
    JSON object.
    """
    if spec.transform.python is None:
        return spec
    checked_fields = [
        field.model_copy(update={"required": field.required and field.origin == "header"})
        for field in spec.source.fields
        if field.origin == "header" or field.name == spec.source.key
    ]
    return with_fields(spec, checked_fields, strict=False)
