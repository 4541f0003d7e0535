"""Tests that random pipelines, events and operations give the cells that a model in plain Python expects.

The test takes one minute on real servers. Half of the time runs without processes, which is ten times as fast.
`make fuzz` takes longer. The environment variables are MINUTES, SEED (the first seed of the rounds, which count up),
and FUZZ_AVOID (the features to leave out, see `oracle.play`).
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from oracle.platform import Running
from oracle.play import Made, play_until
from oracle.stage import Stage

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.exhaustive]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@pytest.mark.parametrize("made", [Stage, Running], ids=["without processes", "with processes"])
def test_answers_equal_a_naive_model(servers: Any, made: Made) -> None:
    """Windows, functions, expressions, late events, edits, kills, replays, roll-ups and pages are random."""
    minutes = float(os.environ.get("MINUTES") or 1) / 2
    seed = int(os.environ.get("SEED") or (1 if "CI" in os.environ else random.SystemRandom().randrange(10**6)))
    avoid = frozenset(filter(None, os.environ.get("FUZZ_AVOID", "").split(",")))
    folder = Path(tempfile.mkdtemp(prefix="tidemill-fuzz-"))
    _say(f"\n{made.__name__}: fuzz from SEED={seed} for {minutes:g} min; wrong rounds are stored in {folder}")
    tally, wrong = play_until(servers, folder, seed=seed, seconds=minutes * 60, avoid=avoid, say=_say, made=made)
    _say(f"{made.__name__}: {tally}; {len(wrong)} rounds were wrong")
    assert not wrong, "\n".join(wrong)
    assert tally.rounds > 0
    folder.rmdir()
