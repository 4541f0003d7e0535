"""Convert pydantic models to structural OpenAPI schemas for Kubernetes.

Kubernetes allows neither `$ref` nor `anyOf` nor numeric exclusive bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from tidemill_contract import duration

_COPIED_MEMBERS = (
    "type",
    "description",
    "default",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "maxProperties",
)
_NAMED = "name"
_ANY_VALUE = "x-kubernetes-preserve-unknown-fields"
"""Marks a member that accepts several types. Kubernetes does not allow `anyOf` for this purpose."""


def structural_schema(model: type[BaseModel], *, list_defaults: bool = False) -> dict[str, Any]:
    """Return the OpenAPI schema of a model.

    Args:
        model: a pydantic model of the spec.
        list_defaults: whether the schema of list items keeps default values.

    Raises:
        ValueError: the API server would refuse the schema, e.g. because of an unbounded list.
    """
    raw = model.model_json_schema(by_alias=True)
    return _convert(raw, raw.get("$defs", {}), "spec", drop=None if list_defaults else False)


# `drop`: True removes all defaults, False removes only the defaults in list items, None keeps the defaults.
def _convert(raw: Mapping[str, Any], defs: Mapping[str, Any], path: str, *, drop: bool | None) -> dict[str, Any]:
    raw = _resolve(raw, defs)
    if _ANY_VALUE in raw:
        return {"description": raw["description"], _ANY_VALUE: True}
    out: dict[str, Any] = {key: raw[key] for key in _COPIED_MEMBERS if key in raw}
    if out.get("default", ...) is None or drop:
        out.pop("default", None)
    if "const" in raw:
        out["enum"] = [raw["const"]]
    for name, bound in (("Minimum", "minimum"), ("Maximum", "maximum")):
        if f"exclusive{name}" in raw:
            out[bound], out[f"exclusive{name}"] = raw[f"exclusive{name}"], True
    match raw.get("type"):
        case "object" if "properties" in raw:
            out["required"] = sorted(raw.get("required", []))
            out["properties"] = {
                name: _convert(member, defs, f"{path}.{name}", drop=drop) for name, member in raw["properties"].items()
            }
            if not out["required"]:
                del out["required"]
        case "object":
            _require_bound(out, "maxProperties", path)
            out["additionalProperties"] = _convert(
                raw["additionalProperties"], defs, f"{path}.*", drop=drop is not None
            )
        case "array":
            _require_bound(out, "maxItems", path)
            out["items"] = _convert(raw["items"], defs, f"{path}[]", drop=drop is not None)
            out |= _list_type(out["items"])
        case "string" if "enum" not in out:
            # Pydantic's JSON schema lacks the check of durations, so add the pattern of a duration.
            if out.get("maxLength") == duration.MAX_LENGTH and "pattern" not in out:
                out["pattern"] = duration.PATTERN
            _require_bound(out, "maxLength", path)
        case "integer":
            out["format"] = "int64"
        case "string" | "number" | "boolean":
            pass
        case other:
            raise ValueError(f"{path}: no structural schema for type {other!r}")
    return out


def _resolve(raw: Mapping[str, Any], defs: Mapping[str, Any]) -> dict[str, Any]:
    if "$ref" in raw:
        target = _resolve(defs[raw["$ref"].rsplit("/", 1)[-1]], defs)
        return target | {key: value for key, value in raw.items() if key != "$ref"}
    if "anyOf" in raw:
        (only,) = (option for option in raw["anyOf"] if option.get("type") != "null")
        return _resolve(only, defs) | {key: value for key, value in raw.items() if key != "anyOf"}
    return dict(raw)


def _require_bound(schema: Mapping[str, Any], bound: str, path: str) -> None:
    if bound not in schema:
        raise ValueError(f"{path} has no {bound}: give the field a max_length in the model")


def _list_type(items: Mapping[str, Any]) -> dict[str, Any]:
    if items["type"] == "string":
        return {"x-kubernetes-list-type": "set"}
    if _NAMED in items.get("properties", {}):
        return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [_NAMED]}
    return {"x-kubernetes-list-type": "atomic"}
