"""Tests of the passes of `up`, which run in a thread."""

from __future__ import annotations

import threading

import pytest

from tidemill_operator.laptop.passes import PassRunner


def test_a_waiting_pass_does_not_block_its_caller() -> None:
    server = threading.Event()

    def ask() -> None:
        server.wait(10)

    passes = PassRunner(ask)
    assert passes.idle
    passes.start()
    passes.wait(0.05)
    assert not passes.idle
    server.set()
    passes.wait(10)
    assert passes.idle


def test_an_error_of_a_pass_is_raised_by_the_next_start() -> None:
    def fail() -> None:
        raise LookupError("a fault of ours")

    passes = PassRunner(fail)
    passes.start()
    passes.wait(10)
    with pytest.raises(LookupError, match="a fault of ours"):
        passes.start()
