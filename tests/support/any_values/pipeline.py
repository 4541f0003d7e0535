"""A pipeline with every function of every type of field that it takes, and its events."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from drawn.metrics import functions_for, parameters_for
from kafka_records import KafkaRecord
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig

MINUTE = 60_000
BASE = 1_700_000_000_000 // (60 * MINUTE) * 60 * MINUTE
LARGEST, TINIEST = math.nextafter(math.inf, 0), 5e-324
NUMERIC = ["sum", "avg", "variance", "stddev", "quantile"]
FUNCTIONS = {
    "v": ["count", "min", "max", "first", "last", "distinct", "topk", *NUMERIC],
    "i": ["count", "min", "max", "first", "last", "distinct", "topk", *NUMERIC],
    "b": ["sum", "stddev", "quantile"],
    "s": ["max", "topk"],
    "at": ["min", "last"],
}
Q = 0.999999
METRICS = [{"name": "n", "function": "count"}] + [
    {"name": f"{field}_{function}", "function": function, "field": field} | ({"q": Q} if function == "quantile" else {})
    for field, functions in FUNCTIONS.items()
    for function in functions
]
# Every other function, for every field that it accepts.
TYPES = {"v": "number", "i": "integer", "b": "boolean", "s": "string", "at": "timestamp"}
FURTHER = [
    {"name": f"{field}_{function}", "function": function, "field": field}
    | parameters_for(function, {name: kind for name, kind in TYPES.items() if name != field})
    for field, kind in TYPES.items()
    for function in functions_for(kind)
    if function not in FUNCTIONS["v"]
] + [{"name": "n_per_second", "function": "rate"}]
REOPENS = {"metrics": METRICS, "latePolicy": "reopen", "retention": "2h"}
MORE = REOPENS | {"metrics": FURTHER}
HOPPING = {"type": "hopping", "size": "3m", "hop": "1m"}
VISITS = {"type": "session", "gap": "25s", "maxLength": "2m"}
SPEC = PipelineSpec.model_validate(
    {
        "source": {
            "topic": {"partitions": 1},
            "fields": [
                {"name": "ts", "type": "timestamp", "required": True},
                {"name": "k", "type": "string"},
                {"name": "v", "type": "number"},
                {"name": "i", "type": "integer"},
                {"name": "b", "type": "boolean"},
                {"name": "s", "type": "string"},
                {"name": "at", "type": "timestamp"},
            ],
            "eventTime": {"field": "ts"},
        },
        "aggregations": [
            {"name": "tumbling", "groupBy": ["k"], "window": {"type": "tumbling", "size": "1m"}, **REOPENS},
            {"name": "hopping", "groupBy": ["k"], "window": HOPPING, **REOPENS},
            {"name": "by_number", "groupBy": ["v", "i"], "window": {"type": "tumbling", "size": "1h"}, **REOPENS},
            {
                "name": "visits",
                "groupBy": ["k"],
                "window": VISITS,
                **REOPENS,
            },
            {"name": "more", "groupBy": ["k"], "window": {"type": "tumbling", "size": "1m"}, **MORE},
            {"name": "more_hopping", "groupBy": ["k"], "window": HOPPING, **MORE},
            {"name": "more_visits", "groupBy": ["k"], "window": VISITS, **MORE},
        ],
    }
)
CONFIG = PipelineConfig(
    namespace="tests", name="values", generation=1, spec=SPEC,
    aggregations=tuple(AggregationRef(name=a.name) for a in SPEC.aggregations),
)  # fmt: skip
Event = dict[str, Any]
Windows = dict[tuple[Any, ...], list["Record"]]


@dataclass(frozen=True)
class Record(KafkaRecord):
    """An event as a record of the only partition."""

    p = 0
    o: int
    members: Event

    def value(self) -> bytes:
        return json.dumps(self.members).encode()
