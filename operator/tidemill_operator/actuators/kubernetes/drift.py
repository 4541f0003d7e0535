"""Find the fields of a live object that others have changed or added."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tidemill_operator.actuators.kubernetes.api import FIELD_MANAGER
from tidemill_operator.plan.render import object_metadata
from tidemill_operator.plan.render.pods import parse_quantity

# For each list field, the fields that identify an item, in order of preference.
_KEYS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "containers": (("name",),),
    "env": (("name",),),
    "imagePullSecrets": (("name",),),
    "ownerReferences": (("uid",),),
    "ports": (("containerPort", "protocol"), ("port", "protocol")),
    "topologySpreadConstraints": (("topologyKey",),),
    "volumeMounts": (("mountPath",),),
    "volumes": (("name",),),
}
_AMOUNTS = frozenset({"cpu", "memory", "sizeLimit"})
_CONTENT = ("f:spec", "f:data", "f:binaryData")
# Fields that other managers may change, e.g. by scaling or by `kubectl rollout restart`.
_ALLOWED = (
    ("f:spec", "f:replicas"),
    ("f:spec", "f:template", "f:metadata", "f:annotations", "f:kubectl.kubernetes.io/restartedAt"),
)


def difference(wanted: Any, live: Any, path: str = "") -> str | None:
    """Return the first path where a live object differs from the applied manifest, or None.

    Additional fields of the live object are ignored.
    """
    if isinstance(wanted, Mapping):
        if not wanted and live is None:
            return None  # the API server does not return empty objects
        if not isinstance(live, Mapping):
            return path or "."
        paths = (difference(value, live.get(name), f"{path}.{name}") for name, value in wanted.items())
        return next((path for path in paths if path is not None), None)
    if isinstance(wanted, list):
        return _list_difference(wanted, live or [], path)
    if wanted == live:
        return None
    return None if _same_amount(path, wanted, live) else path


def _list_difference(wanted: Sequence[Any], live: Sequence[Any], path: str) -> str | None:
    keys = _KEYS.get(path.rpartition(".")[2], ())
    key = next(
        (key for key in keys if all(isinstance(item, Mapping) and item.keys() >= {*key} for item in wanted)), None
    )
    if key is None or not wanted:
        if len(wanted) != len(live):
            return path
        pairs = [(item, live[index], f"{path}[{index}]") for index, item in enumerate(wanted)]
    else:
        live_items = {_identity(item, key): item for item in live if isinstance(item, Mapping)}
        pairs = [(item, live_items.get(_identity(item, key)), f"{path}[{item[key[0]]}]") for item in wanted]
    paths = (difference(item, other, item_path) for item, other, item_path in pairs)
    return next((path for path in paths if path is not None), None)


def _identity(item: Mapping[str, Any], key: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(item.get(member) for member in key)


def _same_amount(path: str, wanted: Any, live: Any) -> bool:
    if path.rpartition(".")[2] not in _AMOUNTS or not isinstance(wanted, str) or not isinstance(live, str):
        return False
    try:
        return parse_quantity(wanted) == parse_quantity(live)
    except (ValueError, KeyError):
        return False


def foreign_managers(live: Mapping[str, Any]) -> list[str]:
    """Return the field managers besides Tidemill that own fields in an object's spec or data."""
    managers = set()
    for entry in live.get("metadata", {}).get("managedFields", ()):
        if entry.get("manager") == FIELD_MANAGER or entry.get("subresource") in ("status", "scale"):
            continue
        fields = entry.get("fieldsV1", {})
        content = {name: fields[name] for name in _CONTENT if name in fields}
        if not all(_is_allowed(path) for path in _leaves(content)):
            managers.add(str(entry.get("manager", "?")))
    return sorted(managers)


def _is_allowed(path: tuple[str, ...]) -> bool:
    return any(path[: len(allowed)] == allowed for allowed in _ALLOWED)


def has_applied(live: Mapping[str, Any], manager: str, *field: str) -> bool:
    """Return whether a field manager has applied a field.

    Args:
        live: the object.
        manager: name of the field manager.
        field: path of the field, such as `"f:spec", "f:replicas"`.
    """
    for entry in live.get("metadata", {}).get("managedFields", ()):
        if entry.get("manager") == manager and entry.get("operation") == "Apply" and not entry.get("subresource"):
            fields: Any = entry.get("fieldsV1", {})
            for step in field:
                fields = fields.get(step) if isinstance(fields, Mapping) else None
            if fields is not None:
                return True
    return False


def _leaves(fields: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, nested in fields.items():
        nested_path = path if name == "." else (*path, name)
        if isinstance(nested, Mapping) and nested:
            yield from _leaves(nested, nested_path)
        elif name != ".":
            yield nested_path


def describe_repair(wanted: Mapping[str, Any], live: Mapping[str, Any]) -> str:
    """Describe a change by other users that the operator reverts, or return an empty text."""
    others, name = foreign_managers(live), f"{live['kind']} {live['metadata']['name']}"
    by = f", which {', '.join(others)} had added" if others else ""
    added = sorted(_containers(live) - _containers(wanted))
    if others and added:
        return f"removed container {', '.join(added)} from {name}{by}"
    path = difference({part: wanted[part] for part in wanted if part != "data"}, live)
    applied = [item["metadata"].get("annotations", {}).get(object_metadata.APPLIED) for item in (wanted, live)]
    if path is not None and (others or applied[0] == applied[1]):
        return f"restored {path.lstrip('.')} of {name}{by.replace('had added', 'had changed')}"
    return f"removed {_foreign_field(live)} from {name}{by}" if others else ""


def _containers(document: Mapping[str, Any]) -> set[str]:
    pod = document.get("spec", {}).get("template", {}).get("spec", {}) if document["kind"] == "Deployment" else {}
    return {str(item.get("name")) for part in ("containers", "initContainers") for item in pod.get(part) or ()}


def _foreign_field(live: Mapping[str, Any]) -> str:
    for entry in live["metadata"].get("managedFields", ()):
        if entry.get("manager") == FIELD_MANAGER or entry.get("subresource") in ("status", "scale"):
            continue
        fields = {name: nested for name, nested in entry.get("fieldsV1", {}).items() if name in _CONTENT}
        for path in _leaves(fields):
            if not _is_allowed(path):
                return ".".join(step.removeprefix("f:") for step in path if step.startswith("f:"))
    return "fields that others added"
