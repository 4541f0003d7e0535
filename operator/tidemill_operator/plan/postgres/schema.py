"""Plan the Postgres schema of a pipeline as text: tables, columns, functions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from tidemill_contract import names
from tidemill_contract.duration import parse_ms
from tidemill_contract.expressions.compiler import derived_types
from tidemill_contract.functions.partials import AggregationLayout, build_layout, field_types
from tidemill_contract.resource.spec import AggregationSpec
from tidemill_contract.runtime import PipelineConfig
from tidemill_contract.tables import (
    aggregations,
    anomalies,
    corrections,
    dead_letters,
    detectors,
    events,
    failures,
    generation,
    offsets,
    quotas,
    readers,
    slots,
)
from tidemill_contract.tables.definition import Table
from tidemill_contract.tables.inputs import dedupe
from tidemill_contract.tables.time_partitions import partition_days
from tidemill_contract.tables.windows import window_table
from tidemill_operator.plan.kafka.claims import TOPICS_TABLE
from tidemill_operator.plan.model import AggregationRow, Replay, Schema
from tidemill_operator.plan.postgres.partitioning import ensure_partition_sql, ensure_partitions_sql
from tidemill_operator.plan.postgres.retention import table_retentions

_SPELLINGS = {"timestamptz": "timestamp with time zone"}

SYSTEM_TABLES = (
    generation.TABLE,
    aggregations.TABLE,
    readers.TABLE,
    offsets.TABLE,
    offsets.LOST,
    dead_letters.TABLE,
    detectors.TABLE,
    detectors.HISTORY,
    corrections.TABLE,
    anomalies.TABLE,
    quotas.TABLE,
    failures.SKIPPED,
    failures.HELD_UP,
    TOPICS_TABLE,
)


def shape_of(aggregation: AggregationSpec, layout: AggregationLayout) -> str:
    """Return the shape of a version as JSON: its groups, window, columns and column types."""
    shape = {
        "groupBy": [list(pair) for pair in layout.group_by],
        "window": aggregation.window.model_dump(by_alias=True, exclude_none=True),
        "partials": [p.column for p in layout.partials],
        "types": {p.column: list(p.source_field) for p in layout.partials if p.source_field is not None},
    }
    return json.dumps(shape, sort_keys=True)


def column_type(definition: str) -> str:
    """Return a column's type from its definition, as Postgres spells the type."""
    name = re.split(r" (?:COLLATE|NOT NULL|DEFAULT|PRIMARY KEY|GENERATED|CHECK)\b", definition, maxsplit=1)[0]
    return _SPELLINGS.get(name, name)


def desired_schema(config: PipelineConfig, replay: Replay | None = None) -> Schema:
    """Return the desired schema of a pipeline, including the versions of the current replay."""
    spec = config.spec
    schema_name = config.schema_name
    tables = list(SYSTEM_TABLES)
    if spec.events.store:
        tables.append(events.TABLE)
    if spec.source.is_multi_topic:
        tables.append(slots.TABLE)
    if spec.source.dedupe is not None:
        tables.append(dedupe.TABLE)
    live = {ref.name: ref.version for ref in config.aggregations}
    versions = [(live, "live"), *([(replay.versions, replay.reader)] if replay else [])]
    tables_and_rows = [pair for numbers, reader in versions for pair in _versions(config, numbers, reader)]
    return Schema(
        name=schema_name,
        owner=names.role(schema_name, "owner"),
        writer=names.role(schema_name, "writer"),
        reader=names.role(schema_name, "reader"),
        tables=(*tables, *(table for table, _ in tables_and_rows)),
        functions=(
            ("ensure_partitions", ensure_partitions_sql(schema_name)),
            ("ensure_partition", ensure_partition_sql(schema_name)),
        ),
        aggregations=tuple(row for _, row in tables_and_rows),
        partitions=spec.source.topic.partitions or 1,
        generation=config.generation,
        events_retention_ms=parse_ms(spec.events.retention) if spec.events.store else None,
        retentions=table_retentions(spec),
        replay=replay.reader if replay else "",
        explodes=spec.source.array is not None,
    )


def _versions(config: PipelineConfig, numbers: Mapping[str, int], reader: str) -> list[tuple[Table, AggregationRow]]:
    spec = config.spec
    types = field_types(spec, derived_types(spec))
    tables_and_rows = []
    for aggregation in spec.aggregations:
        if aggregation.name not in numbers:
            continue
        version = numbers[aggregation.name]
        layout = build_layout(aggregation, types)
        table = names.window_table(aggregation.name, version)
        retention = parse_ms(aggregation.retention)
        row = AggregationRow(
            aggregation.name,
            version,
            table,
            reader,
            shape_of(aggregation, layout),
            partition_days(retention),
            retention,
        )
        tables_and_rows.append((window_table(table, layout), row))
    return tables_and_rows
