"""Tests that model and CRD still refuse the same of 10,000 random resources, with the same paths.

The resources have random windows, detectors and metrics. `kinds.txt` has a line for each thousand: the seed, how many
the model accepts, how many the CRD accepts, and a digest of all refused paths. `REFRESH_GOLDEN=1 make unit
ARGS="-k golden"` rewrites the file after an intended change.
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
    """Return for each resource the paths that the model refuses, and those that the CRD refuses."""
    drawer = Drawer(seed)
    for _ in range(EACH):
        document = drawer.document()
        yield model_faults(document), crd_faults(document)


@pytest.mark.parametrize("seed", SEEDS)
def test_model_and_crd_refuse_the_same_paths_as_the_committed_digest(seed: int) -> None:
    """The CRD also accepts every resource that the model accepts."""
    faults = list(judged(seed))
    assert [of_model for of_model, of_crd in faults if of_crd and not of_model] == []
    accepted = [sum(not paths[judge] for paths in faults) for judge in (0, 1)]
    digest = hashlib.sha256("\n".join(map(repr, faults)).encode()).hexdigest()[:16]
    line = f"{seed} {accepted[0]} {accepted[1]} {digest}"
    committed = dict(text.split(" ", 1) for text in FILE.read_text().splitlines()) if FILE.exists() else {}
    if os.environ.get("REFRESH_GOLDEN") == "1":
        committed[str(seed)] = line.split(" ", 1)[1]
        FILE.write_text("".join(f"{key} {text}\n" for key, text in sorted(committed.items())))
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
def test_crd_faults_of_a_window_are_those_of_the_api_server(members: dict[str, str], wrong: list[str]) -> None:
    """Random resources violate few rules besides the rules in these cases."""
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
def test_a_metric_must_have_either_a_function_or_an_expression(members: dict[str, Any], wrong: list[str]) -> None:
    """Model and CRD refuse the same members of a metric."""
    document = Drawer(0).document()
    metrics = [{"name": "n", "function": "count"}, {"name": "x", **members}]
    window = {"type": "tumbling", "size": "1m"}
    document["spec"] |= {"aggregations": [{"name": "a", "window": window, "metrics": metrics}], "anomalies": []}
    assert model_faults(document) == [f"spec.aggregations[0].metrics[1].{name}" for name in wrong]
    assert crd_faults(document) == [f"aggregations.0.metrics.1.{name}" for name in wrong]
