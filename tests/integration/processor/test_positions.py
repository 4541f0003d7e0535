"""Tests of the position at which a processor starts a partition if a lagging broker gives an outdated answer.

Positions are stored in a real Postgres. The test plays the topic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_processor.source import positions as module
from tidemill_processor.source.positions import PositionStore
from tidemill_processor.transaction import Position

pytestmark = pytest.mark.integration


class Topic:
    """A topic whose partition holds offsets [0, end)."""

    topic = "lagging.orders.events"

    def __init__(self, end: int) -> None:
        self.end = end

    def offset_range(self, partition: int) -> tuple[int, int]:
        return 0, self.end


@pytest.fixture
def config() -> PipelineConfig:
    spec = PipelineSpec.model_validate(
        {
            "source": {
                "topic": {"partitions": 1},
                "fields": [{"name": "ts", "type": "timestamp"}],
                "eventTime": {"field": "ts"},
            },
            "aggregations": [
                {
                    "name": "all",
                    "window": {"type": "tumbling", "size": "1m"},
                    "metrics": [{"name": "events", "function": "count"}],
                }
            ],
        }
    )
    return PipelineConfig(
        namespace="lagging", name="orders", generation=1, spec=spec, aggregations=(AggregationRef(name="all"),)
    )


def test_the_id_of_an_earlier_topic_starts_no_epoch(make_schema: Callable[..., Any], config: PipelineConfig) -> None:
    """The topic was created again, and a lagging broker answers with the old id. Counted events are not read again."""
    connection, database = make_schema(config)
    topic = Topic(10)
    position_store = PositionStore(database, config, topic)  # type: ignore[arg-type]
    connection.execute(f"UPDATE {database.schema}._offsets SET topic_id = 'A', next_offset = 7")
    assert position_store.resolve(connection, [0], {0: "A"}) == {0: Position(7, 0)}
    assert position_store.resolve(connection, [0], {0: "B"}) == {0: Position(0, 1)}
    assert position_store.resolve(connection, [0], {0: "A"}) == {}
    assert position_store.resolve(connection, [0], {0: "B"}) == {0: Position(0, 1)}
    assert position_store.resolve(connection, [0], {0: "C"}) == {0: Position(0, 2)}
    assert position_store.resolve(connection, [0], {0: "A"}) == position_store.resolve(connection, [0], {0: "B"}) == {}
    assert connection.execute(f"SELECT epoch, reason FROM {database.schema}._lost ORDER BY 1").fetchall() == [
        (0, "topic_recreated"),
        (1, "topic_recreated"),
    ]


def test_an_end_before_the_position_starts_an_epoch_only_if_it_remains(
    make_schema: Callable[..., Any], config: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lagging leader answers with an earlier end for a moment. Only lost records start a new epoch."""
    connection, database = make_schema(config)
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    topic = Topic(5)
    position_store = PositionStore(database, config, topic)  # type: ignore[arg-type]
    connection.execute(f"UPDATE {database.schema}._offsets SET topic_id = 'A', next_offset = 7")
    assert position_store.resolve(connection, [0], {0: "A"}) == {}
    topic.end = 8
    now = module.TRUNCATED_SECONDS
    assert position_store.resolve(connection, [0], {0: "A"}) == {0: Position(7, 0)}
    topic.end = 5
    assert position_store.resolve(connection, [0], {0: "A"}) == {}
    now += module.TRUNCATED_SECONDS
    assert position_store.resolve(connection, [0], {0: "A"}) == {0: Position(5, 1)}
    lost = connection.execute(f"SELECT epoch, from_offset, to_offset, reason FROM {database.schema}._lost").fetchall()
    assert lost == [(0, 5, 7, "truncated")]
