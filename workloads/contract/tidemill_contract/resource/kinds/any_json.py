"""Types for members that accept several types of values, such as `path` (a text or a list)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema

from tidemill_contract.resource.paths import EACH_ELEMENT, read_path

ANY_JSON = WithJsonSchema({"x-kubernetes-preserve-unknown-fields": True})


def _validate_path(value: Any) -> Any:
    read_path(value)
    return value if isinstance(value, str) else tuple(step if step != [] else EACH_ELEMENT for step in value)


def _validate_scalar(value: Any) -> Any:
    if not isinstance(value, str | bool | int | float):
        raise ValueError("is not a single value: write a text, a number, true or false")
    return value


Path = Annotated[Any, PlainValidator(_validate_path), ANY_JSON]
Scalar = Annotated[Any, PlainValidator(_validate_scalar), ANY_JSON]
