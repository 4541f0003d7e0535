"""Paths to values in an event: names of members, and indexes in arrays.

A path is a text, such as `order.items[0].sku`, or a list of names and indexes. The step `[]` means each element of the
array.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

EACH_ELEMENT: tuple[()] = ()
"""The step `[]`: each element of an array."""
Step = str | int | tuple[()]
Steps = tuple[Step, ...]
"""A path: names of members, indexes in arrays (from 0), and at most one `EACH_ELEMENT` (`[]`)."""

MAX_STEPS, MAX_INDEX, MAX_CHARACTERS = 16, 99, 512
_PART = re.compile(r"([^\[\]]+)((?:\[[0-9]*\])*)")
_FORBIDDEN_CHARACTERS = re.compile(r'["\\\x00-\x1f\x7f]')


def read_path(path: Any) -> Steps:
    """Return the steps of a path in the spec.

    Raises:
        ValueError: the path is wrong. The error's text has the form `message: remedy`.
    """
    if isinstance(path, str):
        steps = _parse_text(path)
    elif isinstance(path, Sequence) and not isinstance(path, bytes):
        steps = tuple(EACH_ELEMENT if isinstance(step, list | tuple) and not step else step for step in path)
    else:
        raise ValueError("is neither a text nor a list: write a.b.c, or a list of names if a name has dots")
    _check_steps(steps)
    return steps


def _parse_text(text: str) -> Steps:
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"is too long: at most {MAX_CHARACTERS} characters are allowed")
    steps: list[Step] = []
    for part in text.split("."):
        match = _PART.fullmatch(part)
        if match is None:
            remedy = "write names separated by dots, such as order.items[0].sku, or a list if a name has dots"
            raise ValueError(f"is not a path of members: {remedy}")
        steps.append(match.group(1))
        steps += [int(index) if index else EACH_ELEMENT for index in re.findall(r"\[([0-9]*)\]", match.group(2))]
    return tuple(steps)


def _check_steps(steps: Sequence[Any]) -> None:
    if not steps or not isinstance(steps[0], str):
        raise ValueError("does not begin with a member's name: an event is an object, so put a name first")
    if len(steps) > MAX_STEPS:
        raise ValueError(f"has {len(steps)} steps: at most {MAX_STEPS} are allowed")
    _check_each_element(steps)
    for step in steps:
        if step == EACH_ELEMENT:
            continue
        if isinstance(step, bool) or not isinstance(step, str | int):
            raise ValueError("has a step other than a name or an index: write names in quotes, indexes as numbers")
        if isinstance(step, int) and not 0 <= step <= MAX_INDEX:
            raise ValueError(f"has the index {step}: arrays are read from 0 to {MAX_INDEX}")
        if isinstance(step, str) and (not step or len(step) > MAX_CHARACTERS):
            raise ValueError(f"has a name that is empty or too long: names have 1 to {MAX_CHARACTERS} characters")
        if isinstance(step, str) and _FORBIDDEN_CHARACTERS.search(step):
            raise ValueError(
                "has a name with a quote, a backslash or a control character: rename the member in the events"
            )


def _check_each_element(steps: Sequence[Any]) -> None:
    if steps.count(EACH_ELEMENT) > 1:
        raise ValueError("has [] twice, but only one array can be exploded: replace one [] with an index, such as [0]")
    if EACH_ELEMENT in steps and isinstance((*steps, None)[steps.index(EACH_ELEMENT) + 1], int):
        raise ValueError(
            "has an index after []: arrays in an exploded array cannot be read; write the name of a member instead"
        )


def exploded_array(steps: Steps) -> Steps | None:
    """Return the path of the array before `[]`, or None if the path contains no `[]`."""
    return steps[: steps.index(EACH_ELEMENT)] if EACH_ELEMENT in steps else None


def show_path(steps: Sequence[Step]) -> str:
    """Return the path as a text, such as `order.items[0].sku`. Names with dots or brackets get quotes."""
    text = ""
    for step in steps:
        if not isinstance(step, str):
            text += f"[{'' if step == EACH_ELEMENT else step}]"
            continue
        shown = f"'{step}'" if re.search(r"[.\[\]]", step) else step
        text += f".{shown}" if text else shown
    return text
