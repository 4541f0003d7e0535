"""The resource of a pipeline that counts orders by shop and hour."""

from __future__ import annotations

from typing import Any


def orders_by_shop(
    namespace: str,
    *,
    partitions: int = 3,
    amount: str = "number",
    metrics: tuple[dict[str, Any], ...] = (),
    spec: dict[str, Any] | None = None,
    **aggregation: Any,
) -> dict[str, Any]:
    """Return the resource of the pipeline `orders`, as the API server would store it.

    Args:
        namespace: the pipeline's namespace.
        partitions: the partitions of the source topic.
        amount: the type of the field `amount`.
        metrics: metrics besides `orders`, which counts.
        spec: further members of the spec.
        aggregation: further members of the aggregation.
    """
    fields = [
        {"name": "ts", "type": "timestamp", "required": True},
        {"name": "shop", "type": "string"},
        {"name": "amount", "type": amount},
    ]
    by_shop = {
        "name": "by_shop",
        "groupBy": ["shop"],
        "window": {"type": "tumbling", "size": "1h"},
        "metrics": [{"name": "orders", "function": "count"}, *metrics],
        **aggregation,
    }
    return {
        "apiVersion": "tidemill.dev/v1alpha1",
        "kind": "AnalyticsPipeline",
        "metadata": {"name": "orders", "namespace": namespace, "uid": "uid-1", "generation": 1},
        "spec": {
            "source": {"topic": {"partitions": partitions}, "fields": fields, "eventTime": {"field": "ts"}},
            "aggregations": [by_shop],
            **(spec or {}),
        },
    }
