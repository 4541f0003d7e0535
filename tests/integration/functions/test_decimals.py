"""Tests of decimals on real servers: answers and results have every digit that Python's decimal module has."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import Any

import httpx
import pytest

from bench import Bench, MakeBench
from tidemill_contract.expressions.sql import Value, compile_sql
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig

pytestmark = pytest.mark.integration

BASE = 1_700_000_000_000 // 60_000 * 60_000
WIDE = Context(prec=200)
METRICS: list[dict[str, Any]] = [
    {"name": "n", "function": "count"},
    {"name": "total", "function": "sum", "field": "amount"},
    {"name": "mean", "function": "avg", "field": "amount"},
    {"name": "low", "function": "min", "field": "amount"},
    {"name": "high", "function": "max", "field": "amount"},
    {"name": "opening", "function": "first", "field": "amount"},
    {"name": "closing", "function": "last", "field": "amount"},
    {"name": "of_least_fee", "function": "min_by", "field": "amount", "by": "fee"},
    {"name": "of_most_fee", "function": "max_by", "field": "amount", "by": "fee"},
    {"name": "middle", "function": "median", "field": "amount"},
    {"name": "spread", "function": "stddev", "field": "fee"},
    {"name": "paid", "function": "rate", "field": "fee"},
    {"name": "fees", "function": "distinct", "field": "fee"},
    {"name": "frequent", "function": "topk", "field": "fee", "k": 1},
    {"name": "sizes", "function": "histogram", "field": "fee", "bounds": [0.1, 12.5]},
    {"name": "gross", "function": "sum", "field": "taxed"},
    {"name": "large", "function": "sum", "field": "amount", "where": "amount > 0.000001"},
    {"name": "net", "expression": "ROUND(total * 0.81 - n, 3)"},
    {"name": "each", "expression": "total / n"},
]


def config() -> PipelineConfig:
    total = [{"name": "total", "function": "sum", "field": "amount"}]
    spec = PipelineSpec.model_validate(
        {
            "source": {
                "topic": {"partitions": 1},
                "fields": [
                    {"name": "ts", "type": "timestamp"},
                    {"name": "price", "type": "decimal", "scale": 2},
                    {"name": "amount", "type": "decimal", "scale": 6},
                    {"name": "fee", "type": "decimal", "precision": 6, "scale": 2},
                ],
                "eventTime": {"field": "ts", "idleTimeout": "10m", "maxDisorder": "1s"},
            },
            "transform": {
                "derive": [{"name": "taxed", "expression": "ROUND(amount * 1.19, 2)"}],
                "filter": "price >= 0.01 OR price IS NULL",
            },
            "aggregations": [
                {
                    "name": "by_price",
                    "groupBy": ["price"],
                    "window": {"type": "tumbling", "size": "1m"},
                    "metrics": METRICS,
                },
                {"name": "sliding", "window": {"type": "hopping", "size": "1m", "hop": "30s"}, "metrics": total},
                {
                    "name": "visits",
                    "groupBy": ["price"],
                    "window": {"type": "session", "gap": "50s"},
                    "metrics": total,
                },
            ],
            "events": {"store": True},
            "processor": {"flushInterval": "100ms"},
            "auth": {"required": False},
        }
    )
    aggregations = tuple(AggregationRef(name=a.name) for a in spec.aggregations)
    return PipelineConfig(namespace="tests", name="decimals", generation=1, spec=spec, aggregations=aggregations)


def draw_events(rnd: random.Random, number: int) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Return events with Decimals, and their JSON: numbers or texts, some with zeros or exponents."""
    events, raws = [], []
    for n in range(number):
        event = {
            "ts": BASE + n * 100_000 // number,
            "price": rnd.choice([None, Decimal("0.00"), Decimal("0.01"), Decimal("12.50"), Decimal(10**16) - 1]),
            "amount": Decimal(rnd.choice([1, 5, -3, 10**18 - rnd.randrange(10**6), rnd.randrange(10**12)])).scaleb(-6),
            "fee": rnd.choice([None, Decimal("0.10"), Decimal("12.5"), Decimal("-0.01"), Decimal("9999.99")]),
        }
        texts = [f'"{name}": {_written(rnd, value)}' for name, value in event.items()]
        events.append(event)
        raws.append(("{" + ", ".join(texts) + "}").encode())
    return events, raws


def _written(rnd: random.Random, value: Any) -> str:
    if not isinstance(value, Decimal):
        return json.dumps(value)
    text = rnd.choice([f"{value:f}", f"{value.normalize():e}", f"{value:f}00" if "." in f"{value:f}" else f"{value:f}"])
    return f'"{text}"' if rnd.random() < 0.5 else text


def rounded(value: Decimal, digits: int) -> Decimal:
    return value.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP, WIDE)


def total(values: Sequence[Decimal]) -> Decimal | None:
    exact = Decimal(0)
    for value in values:
        exact = WIDE.add(exact, value)
    return exact if values else None


def expected(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the exact answers of a window with these events."""
    amounts, paid = [e["amount"] for e in events], [e for e in events if e["fee"] is not None]
    taxed = [WIDE.multiply(amount, Decimal("1.19")) for amount in amounts]  # eight digits after the point
    whole = total(amounts)
    assert whole is not None
    fees = [e["fee"] for e in paid]
    return {
        "n": len(events),
        "total": whole,
        "mean": rounded(WIDE.divide(whole, len(events)), 6),
        "low": min(amounts),
        "high": max(amounts),
        "opening": amounts[0],
        "closing": amounts[-1],
        "of_least_fee": min(paid, key=lambda e: e["fee"])["amount"] if paid else None,
        "of_most_fee": max(paid, key=lambda e: e["fee"])["amount"] if paid else None,
        "middle": sorted(amounts)[(len(amounts) - 1) // 2],
        "fees": len(set(fees)) if fees else None,
        "gross": total([rounded(tax, 2) for tax in taxed if abs(tax) < Decimal(2**63).scaleb(-8)]),
        "large": total([amount for amount in amounts if amount > Decimal("0.000001")]),
        "net": rounded(WIDE.subtract(WIDE.multiply(whole, Decimal("0.81")), len(events)), 3),
    }


def shown(values: dict[str, Any]) -> dict[str, Any]:
    return {name: f"{value:f}" if isinstance(value, Decimal) else value for name, value in values.items()}


def digits(value: Decimal | None, scale: int) -> str | None:
    return None if value is None else f"{value:.{scale}f}"


def test_answers_and_results_have_every_digit(make_bench: MakeBench) -> None:
    """The metrics are right by group, in panes and in sessions, and in each format."""
    bench = make_bench(config())
    bench.start()
    bench.start(1, module="tidemill_api")
    events, raws = draw_events(random.Random(5), 900)
    for start in range(0, len(raws), 300):
        bench.produce(raws[start : start + 300])
    late = [
        b'{"ts": %d, "price": 1, "amount": 1.2345678}' % (BASE + 1),
        b'{"ts": %d, "price": 1, "fee": 1e4}' % (BASE + 1),
    ]
    bench.produce([*late, b'{"ts": %d, "price": 1}' % (BASE + 600_000)])
    bench.await_consumed(len(raws) + 3)
    letters = bench.query('SELECT reason, field FROM {s}._dead_letters ORDER BY "offset"')
    assert letters == [("mistyped", "amount"), ("out_of_range", "fee")]

    def ask(path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{bench.ports[1]}/v1/pipelines/decimals/{path}", timeout=10)

    Bench.eventually(lambda: _status(ask, "aggregates/by_price") == httpx.codes.OK, what="the API answers")
    counted = [e for e in events if e["price"] is None or e["price"] > 0]
    windows: dict[tuple[Any, int], list[dict[str, Any]]] = {}
    for event in counted:
        windows.setdefault((event["price"], event["ts"] // 60_000 * 60_000), []).append(event)
    page = ask(f"aggregates/by_price?to={BASE + 120_000}").json()
    rows = {(row["price"], row["window_start"]): row for row in page["data"]}
    assert len(rows) == len(windows)
    for (price, start), window in windows.items():
        row = rows[digits(price, 2), _time(start)]
        assert {name: row[name] for name in shown(expected(window))} == shown(expected(window)), price
        assert row["each"] == pytest.approx(float(row["total"]) / row["n"], rel=1e-14)
        fees = [float(e["fee"]) for e in window if e["fee"] is not None]
        assert row["paid"] == pytest.approx(sum(fees) / 60, rel=1e-9)
        mean = sum(fees) / len(fees)
        assert row["spread"] == pytest.approx((sum((fee - mean) ** 2 for fee in fees) / len(fees)) ** 0.5, rel=1e-9)
        most = max({fee: fees.count(fee) for fee in fees}.values())
        assert (row["frequent"][0]["count"], len(row["frequent"])) == (most, 1)
        assert row["frequent"][0]["value"] in {f"{fee:.2f}" for fee in fees if fees.count(fee) == most}
        below, between, beyond = (
            sum(map(test, fees)) for test in (lambda f: f < 0.1, lambda f: 0.1 <= f < 12.5, lambda f: f >= 12.5)
        )
        assert [bucket["count"] for bucket in row["sizes"]] == [below, between, beyond]
    assert {column["name"]: (column["type"], column.get("scale")) for column in page["meta"]} == {
        "price": ("decimal", 2), "window_start": ("timestamp", None), "window_end": ("timestamp", None),
        "closed": ("boolean", None), "n": ("integer", None), "total": ("decimal", 6), "mean": ("decimal", 6),
        "low": ("decimal", 6), "high": ("decimal", 6), "opening": ("decimal", 6), "closing": ("decimal", 6),
        "of_least_fee": ("decimal", 6), "of_most_fee": ("decimal", 6), "middle": ("decimal", 6),
        "spread": ("number", None), "paid": ("number", None), "fees": ("integer", None), "frequent": ("array", None),
        "sizes": ("array", None), "gross": ("decimal", 2), "large": ("decimal", 6), "net": ("decimal", 3),
        "each": ("number", None),
    }  # fmt: skip
    _check_formats(ask, page["data"])
    _check_filters_and_pages(ask, page["data"])
    whole = digits(total([e["amount"] for e in counted]), 6)
    assert [
        row["total"] for row in ask("aggregates/by_price?granularity=all&group_by=&metrics=total").json()["data"]
    ] == [whole]
    for row in ask(f"aggregates/sliding?to={BASE + 120_000}").json()["data"]:
        start = next(at for at in range(BASE - 60_000, BASE + 120_000, 30_000) if _time(at) == row["window_start"])
        amounts = [e["amount"] for e in counted if start <= e["ts"] < start + 60_000]
        assert row["total"] == digits(total(amounts), 6)
    sessions = ask(f"aggregates/visits?to={BASE + 120_000}").json()["data"]
    assert {row["price"]: row["total"] for row in sessions} == {
        digits(price, 2): digits(total([e["amount"] for e in counted if e["price"] == price]), 6)
        for price in {e["price"] for e in counted}
    }
    stored = ask("events?price=12.5&order=event_time,offset&limit=1").json()["data"][0]["data"]
    first = next(e for e in events if e["price"] == Decimal("12.5"))
    scales = {"price": 2, "amount": 6, "fee": 2}
    assert stored == {"ts": first["ts"], **{name: digits(first[name], scale) for name, scale in scales.items()}}
    published = Bench.eventually(lambda: _published(bench, len(windows)), what="results of closed windows")
    for record in published:
        row = rows[record["group"]["price"], record["window_start"]]
        assert record["metrics"] == {name: row[name] for name in record["metrics"]}


def _status(ask: Callable[[str], httpx.Response], path: str) -> int | None:
    try:
        return ask(path).status_code
    except httpx.TransportError:
        return None


def _time(at: int) -> str:
    seconds = at // 1000
    return f"2023-11-14T{seconds // 3600 % 24:02}:{seconds // 60 % 60:02}:{seconds % 60:02}Z"


def _published(bench: Bench, number: int) -> list[dict[str, Any]] | None:
    results = [record for record in bench.records("results") if record["aggregation"] == "by_price"]
    return results if len(results) == number else None


def _check_formats(ask: Callable[[str], httpx.Response], rows: list[dict[str, Any]]) -> None:
    """Assert that JSON numbers, CSV and NDJSON have the same digits as JSON texts."""
    text = ask(f"aggregates/by_price?to={BASE + 120_000}&decimals=number").text
    numbers = json.loads(text, parse_float=lambda digits: f"#{digits}")["data"]
    assert [(row["price"], row["total"], row["middle"]) for row in numbers] == [
        tuple(None if row[name] is None else f"#{row[name]}" for name in ("price", "total", "middle")) for row in rows
    ]
    assert [row["frequent"][0]["value"] for row in numbers] == [f"#{row['frequent'][0]['value']}" for row in rows]
    csv = ask(f"aggregates/by_price.csv?to={BASE + 120_000}&metrics=total,opening").text.split("\r\n")[1:-1]
    expected = [(row["price"] or "", row["total"], row["opening"]) for row in rows]
    assert [tuple(line.split(",")[i] for i in (0, 4, 5)) for line in csv] == expected
    lines = ask(f"aggregates/by_price.ndjson?to={BASE + 120_000}&metrics=total").text.splitlines()
    assert [json.loads(line)["total"] for line in lines] == [row["total"] for row in rows]
    wrong = ask("aggregates/by_price?decimals=float")
    assert (wrong.status_code, wrong.json()["detail"]) == (400, "decimals: 'float' is not one of string, number")


def _check_filters_and_pages(ask: Callable[[str], httpx.Response], rows: list[dict[str, Any]]) -> None:
    """Assert that filters compare values, and that pages return each row once."""
    until = f"to={BASE + 120_000}"
    filtered = ask(f"aggregates/by_price?{until}&price__in=12.5,0.010").json()["data"]
    assert filtered == [row for row in rows if row["price"] in ("12.50", "0.01")]
    bound = sorted(Decimal(row["total"]) for row in rows)[len(rows) // 2]
    ordered = ask(f"aggregates/by_price?{until}&total__gte={bound:f}&order=-total").json()["data"]
    larger = sorted((Decimal(row["total"]) for row in rows if Decimal(row["total"]) >= bound), reverse=True)
    assert [Decimal(row["total"]) for row in ordered] == larger
    pages, cursor = [], ""
    while cursor is not None:
        page = ask(f"aggregates/by_price?{until}&order=-total&limit=3{cursor and f'&cursor={cursor}'}").json()
        pages += page["data"]
        cursor = page["next_cursor"]
    assert sorted(map(json.dumps, pages)) == sorted(map(json.dumps, rows))
    detail = ask("aggregates/by_price?price=x").json()["detail"]
    assert detail == "price: 'x' is not of type decimal; write a number, such as 12.50"


EXPRESSIONS: dict[str, tuple[str, Callable[[Decimal, Decimal, int], Any]]] = {
    "a + b": ("decimal(3)", lambda a, b, i: WIDE.add(a, b)),
    "a * b": ("decimal(5)", lambda a, b, i: WIDE.multiply(a, b)),
    "i - a": ("decimal(2)", lambda a, b, i: WIDE.subtract(i, a)),
    "a * 1.19": ("decimal(4)", lambda a, b, i: WIDE.multiply(a, Decimal("1.19"))),
    "-a": ("decimal(2)", lambda a, b, i: -a),
    "ABS(a)": ("decimal(2)", lambda a, b, i: abs(a)),
    "SIGN(a)": ("integer", lambda a, b, i: (a > 0) - (a < 0)),
    "MOD(a, 0.7)": ("decimal(2)", lambda a, b, i: WIDE.remainder(a, Decimal("0.7"))),
    "MOD(a, b)": ("decimal(3)", lambda a, b, i: WIDE.remainder(a, b) if b else None),
    "ROUND(b, 1)": ("decimal(1)", lambda a, b, i: rounded(b, 1)),
    "ROUND(a)": ("integer", lambda a, b, i: rounded(a, 0)),
    "ROUND(a, 9)": ("decimal(2)", lambda a, b, i: a),
    "FLOOR(a)": ("integer", lambda a, b, i: a // 1 - (a % 1 < 0)),
    "GREATEST(a, b, 0.5)": ("decimal(3)", lambda a, b, i: max(a, b, Decimal("0.5"))),
    "COALESCE(NULLIF(a, b), 0)": ("decimal(2)", lambda a, b, i: 0 if a == b else a),
    "CASE WHEN a >= 12.5 THEN a ELSE i END": ("decimal(2)", lambda a, b, i: a if a >= Decimal("12.5") else i),
    "a IN (12.50, 0)": ("boolean", lambda a, b, i: a in (Decimal("12.5"), 0)),
    "a > b": ("boolean", lambda a, b, i: a > b),
    "a / 4": ("number", lambda a, b, i: float(a) / 4),
    "a / (b - b)": ("number", lambda a, b, i: None),
}


def test_expressions_over_metrics_are_exact(admin: Any) -> None:
    """Their SQL has the values of Python's decimal module, for numbers of every size."""
    columns = {
        name: Value(kind, f"v.{name}", simple=True)
        for name, kind in (("a", "decimal(2)"), ("b", "decimal(3)"), ("i", "integer"))
    }
    compiled = {text: compile_sql(text, columns) for text in EXPRESSIONS}
    assert {text: value.kind for text, value in compiled.items()} == {t: kind for t, (kind, _) in EXPRESSIONS.items()}
    selected = ", ".join(value.sql for value in compiled.values())
    numbers = [Decimal(n).scaleb(-2) for n in (0, 1, -15, 1250, -1250, 10**17 + 1)]
    for a in numbers:
        for b in (number / 10 for number in numbers):
            query = f"SELECT {selected} FROM (SELECT %s::numeric AS a, %s::numeric AS b, %s::numeric AS i) AS v"
            (values,) = admin.execute(query, (a, b, 7)).fetchall()
            assert list(values) == [compute(a, b, 7) for _, compute in EXPRESSIONS.values()], (a, b)
