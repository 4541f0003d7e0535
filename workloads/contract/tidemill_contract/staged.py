"""What ingest, the Python stage and processors must agree on: the checks before the stage, and the origin of records.

A record of the stage topic has the key and the headers of the source record that it was made from, and one more header:
its origin. Its timestamp is the time at which the stage wrote it. With an old timestamp, Kafka could delete the record
before it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tidemill_contract.events.fields import with_fields
from tidemill_contract.resource.spec import PipelineSpec

ORIGIN_HEADER = "tidemill-origin"
RUNS = "runs"
"""The note that a stage commits while it does not wait. Any other note says why it waits."""

Headers = Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True)
class Origin:
    """The source record that a record of the stage topic was made from. Both have the same partition number.

    Attributes:
        topic_id: Kafka's id of the source topic.
        offset: the offset of the record in the source topic.
        time_ms: the timestamp of the record (epoch ms), or a negative number if it has none.
    """

    topic_id: str
    offset: int
    time_ms: int

    def encode(self) -> bytes:
        """Return the value of the header."""
        return f"{self.topic_id}/{self.offset}/{self.time_ms}".encode()


def read_origin(headers: Headers | None) -> Origin | None:
    """Return the origin of a record of the stage topic, or None if the headers contain none."""
    if not headers or headers[-1][0] != ORIGIN_HEADER:
        return None
    try:
        # The id of a topic is base64, so it may contain a slash.
        topic_id, offset, time_ms = (headers[-1][1] or b"").decode().rsplit("/", 2)
        return Origin(topic_id, int(offset), int(time_ms))
    except ValueError:
        return None


def sent_spec(spec: PipelineSpec) -> PipelineSpec:
    """Return the spec by which ingest validates events.

    With a Python stage, the fields are those of the events that the function returns. So ingest only checks the record
    key, the headers (which the stage does not change), and that the event is a JSON object.
    """
    if spec.transform.python is None:
        return spec
    kept = [
        field.model_copy(update={"required": field.required and field.origin == "header"})
        for field in spec.source.fields
        if field.origin == "header" or field.name == spec.source.key
    ]
    return with_fields(spec, kept, strict=False)
