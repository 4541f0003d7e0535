"""What model and CRD refuse of windows, detectors and metrics, and where: 10,000 drawn resources, as they were judged.

`kinds.txt` has a line for each thousand: how many the model takes, how many the CRD, and a digest of the places at
fault. `REFRESH_GOLDEN=1 make unit ARGS="-k golden"` writes it anew, where something is to be judged otherwise.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drawn.kinds import Drawer, crd_faults, model_faults

FILE = Path(__file__).parent / "kinds.txt"
SEEDS, EACH = range(10), 1000


def judged(seed: int) -> Iterator[tuple[list[str], list[str]]]:
    """The places at fault of each resource: by the model, by the CRD."""
    drawer = Drawer(seed)
    for _ in range(EACH):
        document = drawer.document()
        yield model_faults(document), crd_faults(document)


@pytest.mark.parametrize("seed", SEEDS)
def test_kinds_are_judged_as_they_were(seed: int) -> None:
    """Nothing more is refused, nothing less, and in the same places; the CRD refuses nothing that the model takes."""
    found = list(judged(seed))
    assert [places for places, of_crd in found if of_crd and not places] == []
    taken = [sum(not places[which] for places in found) for which in (0, 1)]
    digest = hashlib.sha256("\n".join(map(repr, found)).encode()).hexdigest()[:16]
    line = f"{seed} {taken[0]} {taken[1]} {digest}"
    committed = dict(text.split(" ", 1) for text in FILE.read_text().splitlines()) if FILE.exists() else {}
    if os.environ.get("REFRESH_GOLDEN") == "1":
        committed[str(seed)] = line.split(" ", 1)[1]
        FILE.write_text("".join(f"{known} {text}\n" for known, text in sorted(committed.items())))
    assert f"{seed} {committed.get(str(seed))}" == line


@pytest.mark.parametrize(
    ("members", "wrong"),
    [
        ({"type": "tumbling", "size": "1m"}, []),
        ({"type": "tumbling", "gap": "1m"}, ["aggregations.0.window.size", "aggregations.0.window.gap"]),
        ({"type": "session", "gap": "1m", "maxLength": "1h"}, []),
        ({"type": "hopping", "size": "1m", "maxLength": "1h"}, ["aggregations.0.window.hop",
                                                               "aggregations.0.window.maxLength"]),
        ({"type": "sliding", "size": "1m"}, ["aggregations.0.window.type"]),
        ({"type": "session", "gap": "1m", "Size": "1h"}, [".aggregations.0.window.Size"]),
    ],
)  # fmt: skip
def test_rules_of_the_crd_are_read_as_the_api_server_reads_them(members: dict[str, str], wrong: list[str]) -> None:
    """What is drawn is judged by hardly more than this."""
    document = Drawer(0).document()
    document["spec"] |= {
        "aggregations": [{"name": "a", "window": members, "metrics": [{"name": "n", "function": "count"}]}],
        "anomalies": [],
    }
    assert crd_faults(document) == sorted(wrong)


@pytest.mark.parametrize(
    ("members", "wrong"),
    [
        ({"expression": "n / 2"}, []),
        ({"function": "expression", "expression": "n / 2"}, []),
        ({"function": "sum", "field": "amount", "where": "ok"}, []),
        ({}, ["expression"]),
        ({"field": "amount"}, ["expression", "field"]),
        ({"function": "sum", "field": "amount", "expression": "n"}, ["expression"]),
        ({"expression": "n", "where": "ok"}, ["where"]),
        ({"expression": "n", "q": 0.5}, ["q"]),
    ],
)
def test_a_metric_has_a_function_or_an_expression(members: dict[str, Any], wrong: list[str]) -> None:
    """Model and CRD find the same members at fault."""
    document = Drawer(0).document()
    metrics = [{"name": "n", "function": "count"}, {"name": "x", **members}]
    window = {"type": "tumbling", "size": "1m"}
    document["spec"] |= {"aggregations": [{"name": "a", "window": window, "metrics": metrics}], "anomalies": []}
    assert model_faults(document) == [f"spec.aggregations[0].metrics[1].{name}" for name in wrong]
    assert crd_faults(document) == [f"aggregations.0.metrics.1.{name}" for name in wrong]
