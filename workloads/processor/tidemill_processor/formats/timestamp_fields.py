"""Gives timestamp fields the format that a schema uses."""

from __future__ import annotations

import datetime as dt

from tidemill_contract.events.timestamps import TimeFormat
from tidemill_contract.events.types import EPOCH, default_of
from tidemill_contract.resource.source import FieldSpec


def with_time_format(field: FieldSpec, time_format: str | None, zone: str | None = None) -> FieldSpec:
    """Return a copy of the field in another timestamp format. The default is converted."""
    default = field.default
    if default is not None:
        own, value = TimeFormat.of(field), default_of(field)
        micros = value * 1000 if own is None else own.micros(value)
        moment = EPOCH + dt.timedelta(microseconds=micros)
        default = {"us": micros, "ns": micros * 1000}.get(time_format or "", moment.isoformat())
    return field.model_copy(update={"format": time_format, "zone": zone, "default": default})
