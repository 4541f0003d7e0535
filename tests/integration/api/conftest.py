"""Fixtures that tests of the API share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench import MakeBench
from pipelines.hourly_counts import hourly_counts, insert_windows


@pytest.fixture
def ready_bench(make_bench: MakeBench) -> Callable[..., Any]:
    """Return a function that creates a pipeline with 20 windows in its table."""

    def make(*arguments: Any, at: Any = None, **options: Any) -> Any:
        bench = make_bench(hourly_counts(*arguments, **options), at=at)
        insert_windows(bench)
        return bench

    return make
