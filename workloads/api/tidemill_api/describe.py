"""Writes descriptions of pipelines, with measures, dimensions, windows, watermark and progress."""

from __future__ import annotations

import datetime as dt
from typing import Any

from tidemill_api.catalog import AggregationModel, PipelineModel
from tidemill_api.database import Connection
from tidemill_api.formats.json import describe_columns, type_info
from tidemill_contract.resource.kinds.detectors import DETECTORS
from tidemill_contract.resource.source import FieldSpec
from tidemill_contract.resource.spec import AnomalySpec
from tidemill_contract.tables import aggregations, anomalies, offsets, readers
from tidemill_contract.times import rfc3339, rfc3339_ms


def format_epoch_ms(value: int | None) -> str | None:
    """Return epoch milliseconds as RFC 3339."""
    return None if value is None else rfc3339_ms(value)


def summary(model: PipelineModel) -> dict[str, Any]:
    """Return a pipeline's entry in the list of pipelines, from its config alone."""
    config = model.config
    return {
        "name": config.name,
        "namespace": config.namespace,
        "generation": config.generation,
        "suspended": config.spec.suspend,
        "aggregations": list(model.aggregations),
        "anomalies": [rule.name for rule in config.spec.anomalies],
        "events_kept": config.spec.events.store,
        "auth_required": config.spec.auth.required is not False,
    }


def describe_aggregation(model: AggregationModel) -> dict[str, Any]:
    """Return the description of an aggregation, from the config alone."""
    window = model.spec.window.model_dump(by_alias=True, exclude_none=True)
    return {
        "name": model.name,
        "version": model.version,
        "dimensions": describe_columns(list(model.groups.values())),
        "measures": [
            {
                "name": metric.name,
                "function": metric.function,
                "field": metric.field,
                "where": metric.where,
                "expression": getattr(metric, "expression", None),
                **type_info(model.metrics[metric.name][0].kind),
            }
            for metric in model.spec.metrics
        ],
        "window": window,
        "late_policy": model.spec.late_policy,
        "retention": model.spec.retention,
    }


async def describe(connection: Connection, model: PipelineModel) -> dict[str, Any]:
    """Return the description of a pipeline, with its state from the database."""
    schema = model.schema
    cursor = await connection.execute(aggregations.progress(schema))
    states = {(row[0], row[1]): row[2:] for row in await cursor.fetchall()}
    cursor = await connection.execute(readers.watermark(schema), (readers.LIVE,))
    watermark = await cursor.fetchone()
    cursor = await connection.execute(anomalies.count(schema))
    (anomaly_count,) = await cursor.fetchone() or (0,)
    progress = await _progress(connection, schema)
    descriptions = []
    for aggregation_model in model.aggregations.values():
        rev, closed, scanned, published, dead, dropped = states.get(
            (aggregation_model.name, aggregation_model.version), (0, *[None] * 3, 0, 0)
        )
        descriptions.append({
            **describe_aggregation(aggregation_model),
            "rev": rev, "closed_until": format_epoch_ms(closed), "scanned_until": format_epoch_ms(scanned),
            "published_until": format_epoch_ms(published), "late_dead": dead, "late_dropped": dropped,
        })  # fmt: skip
    config = model.config
    return {
        **summary(model),
        "watermark": format_epoch_ms(watermark[0]) if watermark else None,
        "aggregations": descriptions,
        "anomalies": [_anomaly_rule(rule) for rule in config.spec.anomalies],
        "events": {"store": config.spec.events.store, "retention": config.spec.events.retention},
        "fields": [_field(f) for f in config.spec.source.fields],
        "progress": progress,
        "counts": {
            "anomalies": anomaly_count,
            "dead_letters": progress["invalid"] + sum(a["late_dead"] or 0 for a in descriptions),
        },
    }


def _field(field: FieldSpec) -> dict[str, Any]:
    return {"name": field.name, **type_info(field.kind), "required": field.required, "path": field.place}


def _anomaly_rule(rule: AnomalySpec) -> dict[str, Any]:
    return {**rule.model_dump(by_alias=True), "detector": DETECTORS.to_flat(rule.detector).model_dump(by_alias=True)}


async def _progress(connection: Connection, schema: str) -> dict[str, Any]:
    cursor = await connection.execute(offsets.progress(schema), (readers.LIVE,))
    partitions: list[dict[str, Any]] = [
        {
            "partition": row[0],
            "epoch": row[1],
            "next_offset": row[2],
            "max_event_time": format_epoch_ms(row[3]),
            "consumed": row[4],
            "filtered": row[5],
            "invalid": row[6],
            "last_event_at": _format_time(row[7]),
            "end_confirmed_at": _format_time(row[8]),
            "duplicates": row[9],
        }
        for row in await cursor.fetchall()
    ]
    cursor = await connection.execute(offsets.lost_ranges(schema), (readers.LIVE,))
    lost = [dict(zip(offsets.LOST_RANGE_COLUMNS, row, strict=True)) for row in await cursor.fetchall()]
    totals = {name: sum(row[name] for row in partitions) for name in ("consumed", "filtered", "invalid", "duplicates")}
    return {**totals, "partitions": partitions, "lost": lost}


def _format_time(value: dt.datetime | None) -> str | None:
    return None if value is None else rfc3339(value)
