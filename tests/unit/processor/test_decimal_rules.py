"""Tests of anomaly rules on decimals: detectors read numbers, and groups contain texts."""

from __future__ import annotations

import json

import polars as pl

from tidemill_contract.resource.spec import AnomalySpec
from tidemill_processor.batches.batch import INDEX, PARTITION, TIME
from tidemill_processor.detect import event_anomalies
from tidemill_processor.detect.detectors import as_float

TYPES = {"amount": "decimal(2)", "rate": "decimal(3)", "items": "integer"}


def test_rules_on_events_read_decimals_as_numbers_and_groups_as_texts() -> None:
    rule = AnomalySpec.model_validate({"name": "r", "field": "amount", "groupBy": ["rate", "items"]})
    columns = {
        PARTITION: [0, 0, 0],
        TIME: [1, 2, 3],
        INDEX: [0, 1, 2],
        "amount": [57, None, -1250],
        "items": [7, 7, None],
    }
    frame = pl.DataFrame(columns | {"rate": [1500, 0, None]})
    events = event_anomalies._with_values(rule, frame, TYPES)
    assert events[event_anomalies._VALUE].to_list() == [0.57, -12.5]
    assert [json.loads(key) for key in event_anomalies._keys(rule, events, TYPES)] == [
        {"rate": "1.500", "items": 7}, {"rate": None, "items": None},
    ]  # fmt: skip


def test_rules_on_metrics_read_the_texts_of_decimals_as_numbers() -> None:
    assert [as_float(value) for value in ("12.50", "-0.000001", "1" * 400)] == [12.5, -1e-06, float("inf")]
