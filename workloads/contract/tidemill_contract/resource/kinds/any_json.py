"""Types for members that accept several types of values, such as `path` (a text or a list)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema

from tidemill_contract.resource.paths import EACH, read_path

ANY_JSON = WithJsonSchema({"x-kubernetes-preserve-unknown-fields": True})


def _path(written: Any) -> Any:
    read_path(written)
    return written if isinstance(written, str) else tuple(step if step != [] else EACH for step in written)


def _scalar(written: Any) -> Any:
    if not isinstance(written, str | bool | int | float):
        raise ValueError("is not a single value: write a text, a number, true or false")
    return written


Path = Annotated[Any, PlainValidator(_path), ANY_JSON]
Scalar = Annotated[Any, PlainValidator(_scalar), ANY_JSON]
