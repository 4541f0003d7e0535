"""Metrics of any function that the registry has, with parameters that fit a pipeline's fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tidemill_contract.functions.registry import FUNCTIONS, PARAMETERS

Choose = Callable[[Sequence[Any]], Any]


def functions_for(kind: str) -> list[str]:
    """The functions that take a field of this type."""
    return [name for name, function in FUNCTIONS.items() if kind in function.takes]


def parameters_for(function: str, types: Mapping[str, str], choose: Choose = lambda found: found[0]) -> dict[str, Any]:
    """What a metric of a function needs beside its field: the function's example, and fields that are there."""
    given = dict(FUNCTIONS[function].example)
    for parameter in PARAMETERS.values():
        if function in parameter.functions and parameter.takes is not None:
            given[parameter.alias] = choose([name for name, kind in types.items() if kind in parameter.takes])
    return given
