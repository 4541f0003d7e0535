"""The pipeline for tests of single passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tidemill_operator.cluster.queue import Result
from tidemill_operator.keys import Key


@pytest.fixture
def orders(cluster: Any, passes: Any, namespace: str, make: Callable[..., Key]) -> Key:
    """Create a small pipeline and run passes until it is ready."""
    key = make("orders", namespace)
    passes.until(key, Result.SETTLED)
    return key
