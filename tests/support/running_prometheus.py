"""Prometheus' own programs."""

from __future__ import annotations

import shutil

import pytest


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`."""
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is not installed; run `make setup`, or install the package `prometheus`")
    return found
