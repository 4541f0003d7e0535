"""An installation of an earlier Tidemill is upgraded: it answers what it did, and goes on from there exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

STORED = Path(__file__).parent / "stored"


def same(found: Any, wanted: Any) -> bool:
    """Equal, but for the last bits of a number that is not whole."""
    if isinstance(wanted, float) and isinstance(found, float):
        return found == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(same, found, wanted))
    if isinstance(wanted, dict):
        return (
            isinstance(found, dict) and found.keys() == wanted.keys() and all(same(found[k], wanted[k]) for k in found)
        )
    return bool(found == wanted)


def differences(found: list[Any], wanted: list[Any]) -> list[Any]:
    """Queries whose answers differ, by number, with the rows that do."""
    return [
        (number, [pair for pair in zip(now, then, strict=False) if not same(*pair)] or (len(now), len(then)))
        for number, (now, then) in enumerate(zip(found, wanted, strict=True))
        if not same(now, then)
    ]


def test_a_stored_installation_goes_on(
    make_installation: Callable[..., Any], stored_document: Callable[[], dict[str, Any]]
) -> None:
    """The same answers as before, and as the earlier Tidemill gave after further events."""
    before, after = json.loads((STORED / "answers.json").read_text())
    waves = [json.loads(line)["wave"] for line in (STORED / "events.ndjson").read_text().splitlines()]
    upgraded = make_installation(stored_document())
    upgraded.load()
    upgraded.local.settle()
    upgraded.local.eventually(lambda: upgraded.settled(waves.count(1)), what="the first wave is settled")
    assert differences(upgraded.answers(), before) == []
    upgraded.produce(2)
    upgraded.local.eventually(lambda: upgraded.settled(len(waves)), what="the second wave is settled")
    assert differences(upgraded.answers(), after) == []
