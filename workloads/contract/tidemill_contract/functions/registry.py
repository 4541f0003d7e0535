"""The registry of all aggregate functions and all kinds of stored columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tidemill_contract.functions import counting, deviations, extremes, internal_columns, ordered, sketched, sums
from tidemill_contract.functions.base import Function, PartialKind

_FAMILIES = (counting, sums, extremes, ordered, deviations, sketched)

FUNCTIONS: Mapping[str, Function] = {function.name: function for family in _FAMILIES for function in family.FUNCTIONS}
KINDS: Mapping[str, PartialKind] = {
    kind.name: kind for family in (*_FAMILIES, internal_columns) for kind in family.KINDS
}


@dataclass(frozen=True)
class Parameter:
    """A parameter of some functions, such as `q`. In a spec, the parameter is a member of the metric.

    Attributes:
        alias: the parameter's name in YAML.
        required: whether the functions need the parameter.
        field_types: if the parameter names a field, the types that the field may have, else None.
        remedy: the remedy in the error message if the parameter is missing.
    """

    name: str
    alias: str
    functions: tuple[str, ...]
    required: bool
    field_types: tuple[str, ...] | None
    remedy: str


def _parameters() -> Iterator[Parameter]:
    models = dict.fromkeys(function.parameters for function in FUNCTIONS.values())
    for model in models:
        functions = tuple(name for name, function in FUNCTIONS.items() if function.parameters is model)
        for name, info in model.model_fields.items():
            yield Parameter(
                name=name,
                alias=str(info.alias),
                functions=functions,
                required=info.is_required(),
                field_types=model.fields.get(name),
                remedy=model.remedies.get(name, f"add it to {' or '.join(functions)}"),
            )


PARAMETERS: Mapping[str, Parameter] = {parameter.name: parameter for parameter in _parameters()}
FIELD_OPTIONAL: tuple[str, ...] = tuple(name for name, function in FUNCTIONS.items() if function.field_optional)
ZERO_FILLED: tuple[str, ...] = tuple(name for name, function in FUNCTIONS.items() if function.zero_filled)


def join_names(names: tuple[str, ...] | list[str], word: str = "and") -> str:
    """Return the names as part of a sentence, such as `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"
