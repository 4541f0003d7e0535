"""The rules of `spec.transform.python`."""

from __future__ import annotations

from collections.abc import Iterator

from tidemill_contract.duration import parse_ms
from tidemill_contract.resource.faults import ABSENT, Fault
from tidemill_contract.resource.parts import Parts
from tidemill_contract.resource.scaling_rules import scaling_faults
from tidemill_contract.resource.spec import PythonSpec

_PATH = "spec.transform.python"
MIN_MS, MAX_MS = 1_000, 600_000
"""The minimum and the maximum timeout of a call. The maximum is below Kafka's default limit for a transaction, which
is 15 minutes."""


def python_faults(parts: Parts, _columns: object, _limits: object) -> Iterator[Fault]:
    """Yield a fault for each broken rule about the Python stage."""
    python = parts.python
    if python is None:
        return
    yield from _file_faults(python)
    yield from _format_faults(parts)
    if not MIN_MS <= parse_ms(python.timeout) <= MAX_MS:
        message = "the timeout must be from 1s to 10m"
        yield Fault(f"{_PATH}.timeout", python.timeout, message, "write a time in this range, such as 30s")
    for part in parts.fields:
        if part.model is not None and part.model.origin == "offset":
            message = "events that the function returns are new records with new offsets"
            remedy = f"remove the field or {_PATH}"
            yield Fault(f"{part.path}.from", "offset", message, remedy)
    if parts.kafka is not None:
        message = "the source topic is on another Kafka cluster, and a Kafka transaction cannot span two clusters"
        yield Fault(_PATH, ABSENT, message, f"remove {_PATH} or spec.source.kafka")
    partitions = parts.topic.partitions if parts.topic else None
    if python.scaling is not None:
        flush_ms = parse_ms(parts.processor.flush_interval) if parts.processor else 0
        yield from scaling_faults(python.scaling, partitions, flush_ms=flush_ms, path=f"{_PATH}.scaling")
    elif partitions is not None and python.replicas > partitions:
        message = f"is more than the topic's {partitions} partitions"
        remedy = f"write at most {partitions}; a replica without a partition idles"
        yield Fault(f"{_PATH}.replicas", python.replicas, message, remedy)


def _file_faults(python: PythonSpec) -> Iterator[Fault]:
    if (python.config_map is None) == (python.image is None):
        message = "the file must be either in a ConfigMap or in an image"
        given = ABSENT if python.image is None else python.image
        yield Fault(f"{_PATH}.configMap", given, message, "write either configMap or image")
    elif python.config_map is not None and "/" in python.file:
        message, remedy = "the keys of a ConfigMap have no slash", "write the key alone, such as enrich.py"
        yield Fault(f"{_PATH}.file", python.file, message, remedy)
    elif python.image is not None and not python.file.startswith("/"):
        message, remedy = "is not a path in the image", f"begin the path with a slash, such as /app/{python.file}"
        yield Fault(f"{_PATH}.file", python.file, message, remedy)


def _format_faults(parts: Parts) -> Iterator[Fault]:
    record_format = parts.format
    if record_format is None:
        return
    where, remedy = "spec.source.format", f"write JSON objects to the topic, or remove {_PATH}"
    if record_format.type != "json":
        yield Fault(f"{where}.type", record_format.type, "the Python stage reads only json", remedy)
    elif record_format.envelope != "none":
        message = "the Python stage cannot read an envelope"
        remedy = f"write envelope: none, and read the envelope's members in the function, or remove {_PATH}"
        yield Fault(f"{where}.envelope", record_format.envelope, message, remedy)
