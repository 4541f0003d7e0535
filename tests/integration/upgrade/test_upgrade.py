"""Test of the upgrade of an earlier Tidemill on real servers: old windows keep their answers, new ones are exact."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tidemill_contract.times import rfc3339_ms

pytestmark = pytest.mark.integration

STORED = Path(__file__).parent / "stored"
CLASH_VALUE, CLASH_ORDER = 4, 5
"""The indexes in `QUERIES` of the aggregations `clash_value` and `clash_order`."""


def same(actual: Any, expected: Any) -> bool:
    """Return whether two answers are equal, apart from rounding errors of doubles."""
    if isinstance(expected, float) and isinstance(actual, float):
        return actual == pytest.approx(expected, rel=1e-9, abs=1e-9)
    if isinstance(expected, list):
        return isinstance(actual, list) and len(actual) == len(expected) and all(map(same, actual, expected))
    if isinstance(expected, dict):
        return (
            isinstance(actual, dict)
            and actual.keys() == expected.keys()
            and all(same(actual[k], expected[k]) for k in actual)
        )
    return bool(actual == expected)


def differences(actual: list[Any], expected: list[Any]) -> list[Any]:
    """Return the index of each query with different answers, and the rows that differ."""
    return [
        (number, [pair for pair in zip(now, then, strict=False) if not same(*pair)] or (len(now), len(then)))
        for number, (now, then) in enumerate(zip(actual, expected, strict=True))
        if not same(now, then)
    ]


def last_of(field: str, waves: tuple[int, ...]) -> dict[str, Any]:
    """Return the field's last value in each hour, from the events; null in hours with events of other waves."""
    records = [json.loads(line) for line in (STORED / "events.ndjson").read_text().splitlines()]
    values: dict[str, Any] = {}
    for record in sorted(records, key=lambda record: record["event"]["ts"]):
        hour = rfc3339_ms(record["event"]["ts"] // 3_600_000 * 3_600_000)
        mixed = hour in values and values[hour] is None
        values[hour] = record["event"][field] if record["wave"] in waves and not mixed else None
    return values


def without_clash(answers: list[Any]) -> list[Any]:
    """Return the answers without the metrics whose values were wrong in the earlier Tidemill.

    In each clashing aggregation two metrics shared a column.
    """
    cleaned = list(answers)
    for number, metric in ((CLASH_VALUE, "at"), (CLASH_ORDER, "at_last")):
        cleaned[number] = [{name: value for name, value in row.items() if name != metric} for row in answers[number]]
    return cleaned


def clashed(answers: list[Any]) -> list[dict[str, Any]]:
    """Return the metrics that had wrong values, by window."""
    return [
        {row["window_start"]: row[metric] for row in answers[number]}
        for number, metric in ((CLASH_VALUE, "at"), (CLASH_ORDER, "at_last"))
    ]


def test_an_upgraded_installation_keeps_its_answers_and_counts_new_events_exactly(
    make_installation: Callable[..., Any], stored_document: Callable[[], dict[str, Any]]
) -> None:
    """After further events, the answers are those that the earlier Tidemill gave after them.

    Where two metrics shared a column, one metric was right and stays right. The other was wrong. It becomes null in
    windows that had events before the upgrade, and is right in later windows.
    """
    before, after = json.loads((STORED / "answers.json").read_text())
    waves = [json.loads(line)["wave"] for line in (STORED / "events.ndjson").read_text().splitlines()]
    upgraded = make_installation(stored_document())
    upgraded.load()
    upgraded.local.settle()
    upgraded.local.eventually(lambda: upgraded.settled(waves.count(1)), what="the first wave is settled")
    first = upgraded.answers()
    assert differences(without_clash(first), without_clash(before)) == []
    assert {value for windows in clashed(first) for value in windows.values()} == {None}

    upgraded.produce(2)
    upgraded.local.eventually(lambda: upgraded.settled(len(waves)), what="the second wave is settled")
    second = upgraded.answers()
    assert differences(without_clash(second), without_clash(after)) == []
    assert clashed(second) == [last_of("home", (2,)), last_of("at_home", (2,))]
    assert set(clashed(second)[0].values()) != {None}

    columns = upgraded.local.query(
        "SELECT table_name, column_name, data_type FROM information_schema.columns"
        " WHERE table_schema = 'stored__orders' AND column_name ~ '^_last_' AND table_name LIKE 'clash%_v1'"
        " ORDER BY 1, 2"
    )
    types = {"_last__at_home": "double precision", "_last_at_at_home": "ARRAY", "_last_at_home": "ARRAY"}
    types |= {"_last_home": "double precision"}
    assert columns == [(t, *pair) for t in ("clash_order_v1", "clash_value_v1") for pair in sorted(types.items())]
    assert {version["version"] for version in upgraded.local.status["aggregations"]} == {1}
    notes = upgraded.local.query("SELECT shape, fed FROM {s}._aggregations ORDER BY name")
    upgraded.local.reconcile()
    assert upgraded.local.query("SELECT shape, fed FROM {s}._aggregations ORDER BY name") == notes
