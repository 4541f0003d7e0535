"""Drawn pipelines, events and operations on the real platform, compared cell by cell with a model in plain Python.

A minute of it by default. `make fuzz` runs it for longer: MINUTES, SEED (the first of those that count up).
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from oracle.play import play_until

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.exhaustive]


def test_answers_equal_a_naive_model(servers: Any) -> None:
    """Whatever is drawn: windows, functions, late events, edits, kills, replays, roll-ups, fills, pages."""
    minutes = float(os.environ.get("MINUTES") or 1)
    seed = int(os.environ.get("SEED") or (1 if "CI" in os.environ else random.SystemRandom().randrange(10**6)))
    avoid = frozenset(filter(None, os.environ.get("FUZZ_AVOID", "").split(",")))
    folder = Path(tempfile.mkdtemp(prefix="tidemill-fuzz-"))

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    say(f"\nfuzz from seed {seed} for {minutes:g} min, logs of what is wrong in {folder}")
    tally, wrong = play_until(servers, folder, seed=seed, seconds=minutes * 60, avoid=avoid, say=say)
    say(f"{tally}; {len(wrong)} rounds were wrong")
    assert not wrong, "\n".join(wrong)
    assert tally.rounds > 0
    folder.rmdir()
