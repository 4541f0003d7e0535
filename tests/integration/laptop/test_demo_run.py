"""Test of the demo as a user runs it, with the first days of the data only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.matrix
@pytest.mark.integration
@pytest.mark.slow
def test_the_demo_finds_every_window_equal_and_stops_cleanly() -> None:
    """The demo compares every window with a batch recomputation, and exits with code 0."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_")}
    done = subprocess.run(
        [sys.executable, "-m", "demo", "--events", "8000"],
        env={**environment, "PYTHONPATH": str(ROOT / "hack")},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "every window and metric equals the batch recomputation" in done.stdout
