"""Random paths of fields within events, and formats of their times."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Mapping, Sequence
from typing import Any
from zoneinfo import ZoneInfo

Steps = Sequence[str]

_PATTERN, _ZONE = "%d.%m.%Y %H:%M:%S.%f", "Europe/Berlin"
_SCALES = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def draw_place(rnd: random.Random, name: str, kind: str) -> dict[str, Any]:
    """Draw members of a field beside its name and type. Half of the fields get no path."""
    members: dict[str, Any] = {}
    if rnd.random() < 0.5:
        steps = rnd.choice([["in", name], ["in", "deep", name], ["in", f"The.{name}"], [f"Das {name}"]])
        plain = all("." not in step for step in steps)
        members["path"] = ".".join(steps) if plain and rnd.random() < 0.5 else steps
    # The event time `ts` has no format, so it is written in all forms that need none.
    if kind == "timestamp" and name != "ts" and rnd.random() < 0.7:
        members["format"] = rnd.choice([*_SCALES, _PATTERN])
        if members["format"] == _PATTERN:
            members["zone"] = _ZONE
    return members


def steps_of(field: Mapping[str, Any]) -> Steps:
    """Return the path of a field as a list of names."""
    path = field.get("path", [field["name"]])
    return path.split(".") if isinstance(path, str) else list(path)


def put(members: dict[str, Any], steps: Steps, value: Any) -> None:
    """Set a member, and create the objects around it."""
    *outer, last = steps
    for step in outer:
        members = members.setdefault(step, {})
    members[last] = value


def written(field: Mapping[str, Any], moment: dt.datetime) -> Any:
    """Return a time of whole milliseconds in the format of its field, or None if the field has no format."""
    text = field.get("format")
    if text is None:
        return None
    if text == _PATTERN:
        return moment.astimezone(ZoneInfo(field["zone"])).strftime(text)
    milliseconds = round(moment.timestamp() * 1000)
    if text == "s" and milliseconds % 1000:
        return milliseconds / 1000
    return milliseconds * _SCALES[text] // 1000
