"""Passes of `up` beside what is told meanwhile."""

from __future__ import annotations

import threading

import pytest

from tidemill_operator.laptop.passes import Passes


def test_a_pass_that_waits_holds_up_nobody() -> None:
    """It is seen to be under way, and its end is seen, too."""
    server = threading.Event()

    def ask() -> None:
        server.wait(10)

    passes = Passes(ask)
    assert passes.idle
    passes.start()
    passes.wait(0.05)
    assert not passes.idle
    server.set()
    passes.wait(10)
    assert passes.idle


def test_what_a_pass_raises_is_raised_by_the_next() -> None:
    def fail() -> None:
        raise LookupError("a fault of ours")

    passes = Passes(fail)
    passes.start()
    passes.wait(10)
    with pytest.raises(LookupError, match="a fault of ours"):
        passes.start()
