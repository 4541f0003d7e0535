"""Nested, Avro, exploded, looked-up and staged events, written while processes die and groups, topics and rows change.

After each operation, every window, every dead letter and the counts are compared with the naive model of the fuzz.
Times go on by the round, so that windows close, and some events come when their windows are closed.
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
def test_windows_are_exact_whatever_happens(servers: Any, tmp_path: Path, name: str) -> None:
    """Kills, a rebalance, a reset, more partitions and a replay, one after the other."""
    with ExitStack() as stack:
        play = Play(servers, tmp_path, stack, SHAPES[name])
        play.begin()
        for operation in (play.kill, play.rebalance, play.reset, play.grow):
            play.round(operation)
        assert play.model.filtered > 0
        assert {reason for *_, reason in play.model.dead} > {"late"}
        play.replay()
        play.round(play.kill)
