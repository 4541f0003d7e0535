"""A valid spec, and functions that change it, for tests of the CRD's rules."""

from __future__ import annotations

import copy
from typing import Any

from tidemill_operator.actuators.kubernetes.api import PIPELINE, Document


def base() -> Document:
    """Return a spec that breaks no rule."""
    return {
        "source": {
            "topic": {"partitions": 4},
            "fields": [
                {"name": "country", "type": "string"},
                {"name": "amount", "type": "number"},
                {"name": "ts", "type": "timestamp"},
            ],
        },
        "transform": {"derive": [{"name": "large", "expression": "amount > 9"}]},
        "aggregations": [
            {
                "name": "by_country",
                "groupBy": ["country"],
                "window": {"type": "tumbling", "size": "1m"},
                "metrics": [{"name": "orders", "function": "count"}],
            }
        ],
    }


def resource(spec: Document, namespace: str, name: str = "orders") -> Document:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": PIPELINE.api_version, "kind": PIPELINE.kind, "metadata": metadata, "spec": spec}


def with_member(spec: Document, path: str, value: Any) -> Document:
    """Return a copy with one member set, or removed if `value` is None. Numbers in the path are list indexes."""
    changed = copy.deepcopy(spec)
    place: Any = changed
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in steps:
        place = place[step] if isinstance(step, int) else place.setdefault(step, {})
    if value is None:
        place.pop(last, None)
    else:
        place[last] = value
    return changed
