"""The rules of groups and metrics: fields, their types, and which parameters a function takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tidemill_contract.events.kept_json import JSON
from tidemill_contract.functions.base import ANY, STRINGS
from tidemill_contract.functions.registry import FUNCTIONS, PARAMETERS, listed
from tidemill_contract.resource.faults import Fault, did_you_mean
from tidemill_contract.resource.kinds.metrics import METRICS
from tidemill_contract.resource.parts import Parts

_FOR_ANY = [
    name
    for name, function in FUNCTIONS.items()
    if set(function.takes) >= set(ANY) and not any(p.needed for p in PARAMETERS.values() if name in p.functions)
]
"""Functions that take a field of any type, and need nothing else."""


@dataclass(frozen=True)
class Columns:
    """Fields and derives by name with their spec types; None where the type cannot be told.

    `complete`: no further column can exist.
    """

    types: Mapping[str, str | None]
    complete: bool

    def unknown(self, path: str, name: str, what: str = "field") -> Fault | None:
        """The fault of a reference to a column that does not exist."""
        if name in self.types or not self.complete:
            return None
        return Fault(path, name, f"there is no {what} of this name", did_you_mean(name, self.types))

    def kept_only(self, path: str, name: str) -> Fault | None:
        """The fault of a group column that has no single value."""
        kind = self.types.get(name)
        if kind not in (JSON, STRINGS):
            return None
        return Fault(path, name, f"is of type {kind}, which has no groups", "group by a field with a path into it")


def metric_faults(parts: Parts, columns: Columns, _limits: object) -> Iterator[Fault]:
    """The faults of groups and metrics: fields that are not there or of another type, parameters of other functions."""
    for aggregation in parts.aggregations:
        for path, name in aggregation.group_by:
            fault = columns.unknown(path, name, "field or derive") or columns.kept_only(path, name)
            if fault:
                yield fault
        for metric in aggregation.metrics:
            if metric.model is not None:
                yield from _metric(metric.model, metric.path, columns)


def _metric(metric: Any, path: str, columns: Columns) -> Iterator[Fault]:
    """The faults of a metric as it is written, its parameters first."""
    members = dict(METRICS.members)
    field, function = members.pop("field"), metric.function
    for name, member in members.items():
        value, takes = getattr(metric, name), PARAMETERS[name].takes
        fault = METRICS.fault(metric, member, path)
        if fault:
            yield fault
        elif value is not None and takes is not None:
            told = f"{member.alias} of {function} is one of", "name another field, or derive one"
            yield from _column(f"{path}.{member.alias}", value, columns, takes, told)
    fault = METRICS.fault(metric, field, path)
    if fault:
        yield fault
    elif metric.field is not None:
        remedy = f"use {listed(_FOR_ANY, 'or')}, or derive a number from it"
        told = f"{function} takes", remedy
        yield from _column(f"{path}.field", metric.field, columns, FUNCTIONS[function].takes, told)


def _column(path: str, name: str, columns: Columns, takes: Sequence[str], told: tuple[str, str]) -> Iterator[Fault]:
    """The faults of a field that a metric names; `told` begins the message about its type, and ends it."""
    fault = columns.unknown(path, name, "field or derive")
    if fault:
        yield fault
    kind = columns.types.get(name)
    if kind is not None and kind not in takes:
        yield Fault(path, name, f"{told[0]} {', '.join(takes)}, not a {kind}", told[1])
