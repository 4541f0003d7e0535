"""Find the fields of a live object that others have changed or added."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tidemill_operator.actuators.kubernetes.api import MANAGER
from tidemill_operator.plan.render import marks
from tidemill_operator.plan.render.pods import quantity

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
        return next((place for place in paths if place is not None), None)
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
    paths = (difference(item, other, place) for item, other, place in pairs)
    return next((place for place in paths if place is not None), None)


def _identity(item: Mapping[str, Any], key: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(item.get(member) for member in key)


def _same_amount(path: str, wanted: Any, live: Any) -> bool:
    if path.rpartition(".")[2] not in _AMOUNTS or not isinstance(wanted, str) or not isinstance(live, str):
        return False
    try:
        return quantity(wanted) == quantity(live)
    except (ValueError, KeyError):
        return False


def strangers(live: Mapping[str, Any]) -> list[str]:
    """Return the field managers besides Tidemill that own fields in an object's spec or data."""
    managers = set()
    for entry in live.get("metadata", {}).get("managedFields", ()):
        if entry.get("manager") == MANAGER or entry.get("subresource") in ("status", "scale"):
            continue
        fields = entry.get("fieldsV1", {})
        content = {name: fields[name] for name in _CONTENT if name in fields}
        if not all(_allowed(place) for place in _leaves(content)):
            managers.add(str(entry.get("manager", "?")))
    return sorted(managers)


def _allowed(place: tuple[str, ...]) -> bool:
    return any(place[: len(allowed)] == allowed for allowed in _ALLOWED)


def holds(live: Mapping[str, Any], manager: str, *place: str) -> bool:
    """Return whether a field manager has applied a field.

    Args:
        live: the object.
        manager: name of the field manager.
        place: path of the field, such as `"f:spec", "f:replicas"`.
    """
    for entry in live.get("metadata", {}).get("managedFields", ()):
        if entry.get("manager") == manager and entry.get("operation") == "Apply" and not entry.get("subresource"):
            fields: Any = entry.get("fieldsV1", {})
            for step in place:
                fields = fields.get(step) if isinstance(fields, Mapping) else None
            if fields is not None:
                return True
    return False


def _leaves(fields: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, below in fields.items():
        place = path if name == "." else (*path, name)
        if isinstance(below, Mapping) and below:
            yield from _leaves(below, place)
        elif name != ".":
            yield place


def repair(wanted: Mapping[str, Any], live: Mapping[str, Any]) -> str:
    """Describe a change by other users that the operator reverts, or return an empty text."""
    others, name = strangers(live), f"{live['kind']} {live['metadata']['name']}"
    by = f", which {', '.join(others)} had added" if others else ""
    added = sorted(_containers(live) - _containers(wanted))
    if others and added:
        return f"removed container {', '.join(added)} from {name}{by}"
    place = difference({part: wanted[part] for part in wanted if part != "data"}, live)
    applied = [of["metadata"].get("annotations", {}).get(marks.APPLIED) for of in (wanted, live)]
    if place is not None and (others or applied[0] == applied[1]):
        return f"restored {place.lstrip('.')} of {name}{by.replace('had added', 'had changed')}"
    return f"removed {_held(live)} from {name}{by}" if others else ""


def _containers(of: Mapping[str, Any]) -> set[str]:
    pod = of.get("spec", {}).get("template", {}).get("spec", {}) if of["kind"] == "Deployment" else {}
    return {str(item.get("name")) for part in ("containers", "initContainers") for item in pod.get(part) or ()}


def _held(live: Mapping[str, Any]) -> str:
    for entry in live["metadata"].get("managedFields", ()):
        if entry.get("manager") == MANAGER or entry.get("subresource") in ("status", "scale"):
            continue
        fields = {name: below for name, below in entry.get("fieldsV1", {}).items() if name in _CONTENT}
        for place in _leaves(fields):
            if not _allowed(place):
                return ".".join(step.removeprefix("f:") for step in place if step.startswith("f:"))
    return "fields that others added"
