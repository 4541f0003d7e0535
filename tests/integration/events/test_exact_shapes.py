"""Tests that windows, dead letters and counts equal a naive model for events of several shapes.

The events are nested, Avro, exploded, looked up, staged or repeated. The local runtime runs the
pipeline on real servers. Events are written while processes are killed, and while topics and lookup rows change.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from shapes.kinds import SHAPES
from shapes.play import Play

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.matrix]


@pytest.mark.parametrize("name", SHAPES)
def test_windows_are_exact_through_kills_and_changes(servers: Any, tmp_path: Path, name: str) -> None:
    """The operations are kills, a rebalance, a reset, more partitions, a replay and kills, in this order."""
    with ExitStack() as stack:
        play = Play(servers, tmp_path, stack, SHAPES[name])
        play.begin()
        for operation in (play.kill, play.rebalance, play.reset, play.grow):
            play.round(operation)
        assert play.model.filtered > 0
        assert {reason for *_, reason in play.model.dead} > {"late"}
        play.replay()
        play.round(play.kill)
