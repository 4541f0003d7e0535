"""Parameters of metrics for every function of the registry, with fields that a pipeline has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tidemill_contract.functions.registry import FUNCTIONS, PARAMETERS

Choose = Callable[[Sequence[Any]], Any]


def functions_for(kind: str) -> list[str]:
    """Return the functions that accept a field of this type."""
    return [name for name, function in FUNCTIONS.items() if kind in function.field_types]


def parameters_for(function: str, types: Mapping[str, str], choose: Choose = lambda names: names[0]) -> dict[str, Any]:
    """Return the members that a metric needs beside its field, with fields of the right type."""
    parameters = dict(FUNCTIONS[function].example)
    for parameter in PARAMETERS.values():
        if function in parameter.functions and parameter.field_types is not None:
            parameters[parameter.alias] = choose(
                [name for name, kind in types.items() if kind in parameter.field_types]
            )
    return parameters
