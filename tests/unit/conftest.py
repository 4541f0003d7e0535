"""Fixtures of unit tests: the systems of a cluster in memory, and a small valid resource."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill_operator.testing import MemoryWorld


@pytest.fixture
def world() -> MemoryWorld:
    """Return an empty world in memory with one broker."""
    return MemoryWorld()


def _document(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "tidemill.dev/v1alpha1",
        "kind": "AnalyticsPipeline",
        "metadata": {"name": "orders", "namespace": "shop", "uid": "uid-1", "generation": 1},
        "spec": {
            "source": {
                "topic": {"partitions": 3},
                "fields": [
                    {"name": "ts", "type": "timestamp", "required": True},
                    {"name": "country", "type": "string"},
                    {"name": "amount", "type": "number"},
                ],
                "key": "country",
                "eventTime": {"field": "ts"},
            },
            "aggregations": [
                {
                    "name": "by_country",
                    "groupBy": ["country"],
                    "window": {"type": "tumbling", "size": "1h"},
                    "metrics": [{"name": "orders", "function": "count"}],
                }
            ],
            **spec,
        },
    }


@pytest.fixture
def document() -> dict[str, Any]:
    """Return the small valid resource `shop/orders`, which tests may change."""
    return _document()
