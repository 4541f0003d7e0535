"""Cases of edits of the fields that define results: transform, aggregations, anomaly rules and retention."""

from __future__ import annotations

from spec_edits.edits import (
    FIRST,
    NEXT_VERSION,
    RECOUNTED,
    RESTART,
    RESULTS,
    TABLE,
    Case,
    Document,
    both,
    invalid,
    put,
)

EVENTS_RULE = {"name": "odd", "field": "amount", "groupBy": ["country"], "detector": {"type": "zscore"}}


def second_aggregation(spec: Document) -> None:
    spec["aggregations"].append({**spec["aggregations"][0], "name": "all", "groupBy": []})


RESULT_CASES: dict[str, list[Case]] = {
    "transform.derive.name": [
        Case(
            both(put("transform.derive[0].name", "total"), put(f"{FIRST}.metrics[1].field", "total")),
            (TABLE, RESTART, RECOUNTED),
        )
    ],
    "transform.derive.expression": [
        Case(put("transform.derive[0].expression", "amount * 3"), (RESTART, RECOUNTED)),
        Case(put("transform.derive[0].expression", "amount > 3"), (RESTART, *NEXT_VERSION)),
        invalid("transform.derive[0].expression", "note", "spec.aggregations[0].metrics[1].field: sum takes integer"),
    ],
    "transform.filter": [Case(put("transform.filter", "amount > 0"), (RESTART, RECOUNTED))],
    "aggregations.name": [
        Case(
            both(put(f"{FIRST}.name", "by_land"), put("anomalies[0].aggregation", "by_land")),
            ("create table by_land_v1", RESTART),
        )
    ],
    "aggregations.groupBy": [Case(put(f"{FIRST}.groupBy", ["note"]), (RESTART, *NEXT_VERSION))],
    "aggregations.window.type": [
        Case(put(f"{FIRST}.window", {"type": "session", "gap": "1m"}), (RESTART, *NEXT_VERSION))
    ],
    "aggregations.window.size": [Case(put(f"{FIRST}.window.size", "2h"), (RESTART, *NEXT_VERSION))],
    "aggregations.window.zone": [
        invalid(f"{FIRST}.window.zone", "Europe/Oslo", "spec.aggregations[0].window.size: is not a number of days"),
        Case(
            put(f"{FIRST}.window.zone", "Europe/Oslo"),
            (RESTART, *NEXT_VERSION),
            before=put(f"{FIRST}.window", {"type": "tumbling", "size": "1d"}),
        ),
    ],
    "aggregations.window.offset": [Case(put(f"{FIRST}.window.offset", "15m"), (RESTART, *NEXT_VERSION))],
    "aggregations.window.hop": [
        Case(
            put(f"{FIRST}.window.hop", "15m"),
            (RESTART, *NEXT_VERSION),
            before=put(f"{FIRST}.window", {"type": "hopping", "size": "1h", "hop": "30m"}),
        )
    ],
    "aggregations.window.gap": [
        invalid(f"{FIRST}.window.gap", "1m", "spec.aggregations[0].window.gap: a tumbling window takes no gap"),
        Case(
            put(f"{FIRST}.window.gap", "2m"),
            (RESTART, *NEXT_VERSION),
            before=put(f"{FIRST}.window", {"type": "session", "gap": "1m"}),
        ),
    ],
    "aggregations.window.maxLength": [
        invalid(f"{FIRST}.window.maxLength", "1m", "spec.aggregations[0].window.maxLength: a tumbling window takes no"),
        Case(
            put(f"{FIRST}.window.maxLength", "1h"),
            (RESTART, *NEXT_VERSION),
            before=put(f"{FIRST}.window", {"type": "session", "gap": "1m"}),
        ),
    ],
    "aggregations.window.grace": [Case(put(f"{FIRST}.window.grace", "1m"), (RESTART,))],
    "aggregations.latePolicy": [
        Case(put(f"{FIRST}.latePolicy", "drop"), (RESTART,)),
        Case(put(f"{FIRST}.latePolicy", "reopen"), (TABLE, RESTART)),
    ],
    "aggregations.metrics.name": [
        Case(both(put(f"{FIRST}.metrics[0].name", "sales"), put("anomalies[0].metric", "sales")), (RESTART,))
    ],
    "aggregations.metrics.function": [
        Case(put(f"{FIRST}.metrics[1].function", "max"), (TABLE, RESTART)),
        Case(put(f"{FIRST}.metrics[1].function", "distinct"), (TABLE, RESTART)),
    ],
    "aggregations.metrics.field": [Case(put(f"{FIRST}.metrics[1].field", "weight"), (TABLE, RESTART))],
    "aggregations.metrics.where": [
        Case(put(f"{FIRST}.metrics[1].where", "weight > 1"), (TABLE, RESTART)),
        Case(
            put(f"{FIRST}.metrics[1].where", "( WEIGHT>1 )"),
            (RESTART,),
            before=put(f"{FIRST}.metrics[1].where", "weight > 1"),
        ),
        invalid(f"{FIRST}.metrics[1].where", "weight", "spec.aggregations[0].metrics[1].where: is of type number, not"),
    ],
    "aggregations.metrics.expression": [
        Case(
            put(f"{FIRST}.metrics[1].expression", "orders * 3"),
            (RESTART,),
            before=put(f"{FIRST}.metrics[1]", {"name": "revenue", "expression": "orders * 2"}),
        ),
        invalid(
            f"{FIRST}.metrics[1].expression", "orders", "spec.aggregations[0].metrics[1].expression: sum takes no expr"
        ),
        invalid(
            f"{FIRST}.metrics[1]",
            {"name": "revenue", "expression": "order * 2"},
            "spec.aggregations[0].metrics[1].expression: unknown metric 'order'",
        ),
    ],
    "aggregations.metrics.q": [
        invalid(f"{FIRST}.metrics[1].q", 0.5, "spec.aggregations[0].metrics[1].q: sum takes no q"),
        Case(
            put(f"{FIRST}.metrics[1]", {"name": "median", "function": "quantile", "field": "amount", "q": 0.5}),
            (TABLE, RESTART),
        ),
    ],
    "aggregations.metrics.k": [
        invalid(f"{FIRST}.metrics[1].k", 5, "spec.aggregations[0].metrics[1].k: sum takes no k"),
        Case(put(f"{FIRST}.metrics[1]", {"name": "prices", "function": "topk", "field": "amount"}), (TABLE, RESTART)),
        Case(
            put(f"{FIRST}.metrics[1].k", 100),
            (RESTART,),
            before=put(f"{FIRST}.metrics[1]", {"name": "prices", "function": "topk", "field": "amount", "k": 5}),
        ),
    ],
    "aggregations.retention": [Case(put(f"{FIRST}.retention", "30d"))],
    "anomalies.name": [Case(put("anomalies[0].name", "strange"), (RESTART,))],
    "anomalies.aggregation": [
        Case(put("anomalies[0].aggregation", "all"), (RESTART,), before=second_aggregation),
    ],
    "anomalies.metric": [Case(put("anomalies[0].metric", "revenue"), (RESTART,))],
    "anomalies.field": [
        Case(put("anomalies[0].field", "gross"), (RESTART,), before=put("anomalies[0]", EVENTS_RULE)),
        invalid("anomalies[0].field", "amount", "spec.anomalies[0].field: the rule already watches metric orders"),
    ],
    "anomalies.groupBy": [
        Case(put("anomalies[0].groupBy", ["note"]), (RESTART,), before=put("anomalies[0]", EVENTS_RULE)),
        invalid("anomalies[0].groupBy", ["note"], "spec.anomalies[0].groupBy: a rule that watches a metric uses the"),
    ],
    "anomalies.detector.type": [Case(put("anomalies[0].detector.type", "ewma"), (RESTART,))],
    "anomalies.detector.threshold": [Case(put("anomalies[0].detector.threshold", 5.0), (RESTART,))],
    "anomalies.detector.warmup": [Case(put("anomalies[0].detector.warmup", 12), (RESTART,))],
    "anomalies.detector.cooldown": [Case(put("anomalies[0].detector.cooldown", "3h"), (RESTART,))],
    "anomalies.detector.weight": [
        Case(put("anomalies[0].detector.weight", 0.5), (RESTART,), before=put("anomalies[0].detector.type", "ewma")),
        invalid("anomalies[0].detector.weight", 0.5, "spec.anomalies[0].detector.weight: zscore takes no weight"),
    ],
    "anomalies.detector.span": [
        Case(put("anomalies[0].detector.span", 50), (RESTART,), before=put("anomalies[0].detector.type", "mad"))
    ],
    "anomalies.detector.period": [
        Case(
            put("anomalies[0].detector.period", "week"),
            (RESTART,),
            before=put("anomalies[0].detector.type", "seasonal"),
        )
    ],
    "events.store": [Case(put("events.store", True), ("create table _events", RESTART))],
    "events.retention": [Case(put("events.retention", "1d"), (RESTART,))],
    "deadLetters.retention": [Case(put("deadLetters.retention", "1d"), ())],
    "deadLetters.quota": [Case(put("deadLetters.quota", "2Gi"), (RESTART,))],
    "anomalyHistory.retention": [Case(put("anomalyHistory.retention", "1d"), ())],
    "anomalyHistory.quota": [Case(put("anomalyHistory.quota", "2Gi"), (RESTART,))],
    "results.publish": [
        Case(put("results.publish", False), (RESTART,)),
        Case(put("results.publish", True), (f"create {RESULTS}", RESTART), before=put("results.publish", False)),
    ],
}
