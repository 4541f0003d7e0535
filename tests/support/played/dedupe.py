"""A pipeline with `source.dedupe`, and a processor whose batches the test chooses."""

from __future__ import annotations

import json
from typing import Any

import psycopg

from kafka_records import RawRecord
from played.processor import PlayedProcessor
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_processor.keeper.event_id_cleanup import EventIdCleaner
from tidemill_processor.transaction import CommitResult

BASE = 1_700_000_000_000 // 3_600_000 * 3_600_000
NOW = BASE + 86_400_000
HOUR = 3_600_000
PARTITIONS = 3
SPEC = PipelineSpec.model_validate(
    {
        "source": {
            "topic": {"partitions": PARTITIONS},
            "fields": [
                {"name": "id", "type": "string"},
                {"name": "ts", "type": "timestamp", "required": True},
                {"name": "v", "type": "integer"},
            ],
            "eventTime": {"field": "ts", "idleTimeout": "10m", "maxDisorder": "1m"},
            "dedupe": {"field": "id", "window": "1h"},
        },
        "transform": {"filter": "v <> 13"},
        "aggregations": [
            {
                "name": "hourly",
                "window": {"type": "tumbling", "size": "1h"},
                "metrics": [{"name": "n", "function": "count"}, {"name": "total", "function": "sum", "field": "v"}],
            },
            {
                "name": "daily",
                "window": {"type": "tumbling", "size": "1d"},
                "metrics": [{"name": "n", "function": "count"}, {"name": "total", "function": "sum", "field": "v"}],
            },
        ],
        "events": {"store": True},
        "processor": {"flushInterval": "50ms"},
        "auth": {"required": False},
    }
)
CONFIG = PipelineConfig(
    namespace="tests", name="dedupe", generation=1, spec=SPEC,
    aggregations=tuple(AggregationRef(name=a.name) for a in SPEC.aggregations),
)  # fmt: skip


Event = dict[str, Any]
Logs = dict[int, list[RawRecord]]


def event(id_: str | None, at: int, v: int = 1) -> Event:
    """Return an event `at` milliseconds after `BASE`."""
    return {"id": id_, "ts": BASE + at, "v": v}


def logged(*partitions: list[Event]) -> Logs:
    """Return the events of each partition as records."""
    return {
        p: [RawRecord(p, offset, json.dumps(members).encode()) for offset, members in enumerate(events)]
        for p, events in enumerate([*partitions, *[[]] * (PARTITIONS - len(partitions))])
    }


class Process(PlayedProcessor):
    """A processor of the pipeline, whose loop the test plays."""

    def __init__(
        self, connection: psycopg.Connection[Any], reader: str = "live", config: PipelineConfig = CONFIG
    ) -> None:
        super().__init__(connection, config, reader)

    def take(self, logs: Logs, sizes: dict[int, int], *, dies: bool = False) -> CommitResult | None:
        """Commit the next records, at most `sizes[partition]` of each partition. See `PlayedProcessor.step`."""
        records = [
            record
            for p, position in self.positions.items()
            for record in logs[p][position.next_offset : position.next_offset + sizes.get(p, 0)]
        ]
        return self.step(records, NOW, dies=dies)

    def event_id_cleaner(self) -> EventIdCleaner:
        """Return the part of the keeper that deletes expired ids."""
        cleaner = EventIdCleaner.of(self.connection, self.database, CONFIG)
        assert cleaner is not None
        return cleaner


def totals(connection: psycopg.Connection[Any], schema: str, table: str = "daily_v1") -> tuple[int, int]:
    """Return the number of counted events, and the sum of `v`."""
    query = f"SELECT coalesce(sum(_count), 0)::bigint, coalesce(sum(_sum_v), 0)::bigint FROM {schema}.{table}"
    return tuple(connection.execute(query).fetchone() or ())
