"""Choose the reader for record formats other than plain JSON."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

from tidemill_contract.events.decoder import DecodedBatch
from tidemill_contract.events.event_times import EventTimes
from tidemill_contract.events.formats.csv_columns import CsvReader
from tidemill_contract.events.formats.envelopes import opener_for
from tidemill_contract.events.formats.framing import FramedOpener
from tidemill_contract.events.formats.opened_reader import OpenedReader
from tidemill_contract.events.shapes import Leaf
from tidemill_contract.resource.spec import PipelineSpec


class Reader(Protocol):
    """Decodes and validates the values of one pipeline's records."""

    times: EventTimes

    def read(self, raws: Sequence[bytes], now_ms: int, tombstones: Collection[int]) -> DecodedBatch:
        """Decode the values of records. `tombstones` are the indexes of records without a value."""

    def values(self, events: Sequence[Any], name: str) -> list[Any]:
        """Return a field's value in each event."""

    def put(self, events: Sequence[Any], name: str, values: Sequence[Any]) -> None:
        """Set the values of a field from outside the events, such as from a header."""

    def as_json(self, events: Sequence[Any], raws: Sequence[bytes]) -> list[str]:
        """Return each event as a JSON object, in which each field is a member. `raws` are the values of the records."""

    def document(self, raw: bytes) -> bytes:
        """Return the event of a valid record as JSON."""


def reader_for(spec: PipelineSpec, *, exact: bool, array: Leaf | None = None) -> Reader | None:
    """Return the reader for a pipeline's records, or None for plain JSON.

    Raises:
        ValueError: the format (such as Avro) can be read only by processors.
    """
    record_format = spec.source.record_format
    match record_format.type:
        case "json":
            if record_format.envelope == "none" and record_format.deletes == "deadLetter":
                return None
            return OpenedReader(spec, opener_for(record_format), exact=exact, array=array)
        case "jsonSchema":
            return OpenedReader(spec, FramedOpener(opener_for(record_format)), exact=exact, array=array)
        case "csv":
            return CsvReader(spec, exact=exact)
    raise ValueError(f"{record_format.type} can be read only by processors")
