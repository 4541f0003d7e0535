"""Tests of metrics of any finite values on a real Postgres: each answer is right, or null if no double can hold it.

The tests compare the windows of the results topic and of the API, also rolled up, with exact fractions. `EXAMPLES` sets
the number of drawn cases; `--hypothesis-seed` draws others.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from any_values.pipeline import BASE, CONFIG, FUNCTIONS, LARGEST, MINUTE, TINIEST, Event
from any_values.stage import MORE_OF, Stage
from tidemill_contract.events.event_errors import SECONDS_FROM, SECONDS_TO
from tidemill_contract.runtime import PipelineConfig
from tidemill_contract.times import rfc3339_ms
from tidemill_processor.merge import merging

pytestmark = pytest.mark.integration

EXAMPLES = int(os.environ.get("EXAMPLES", "12"))
DOUBLES = st.floats(allow_nan=False, allow_infinity=False)
NAMED = st.sampled_from(
    [0.0, -0.0, TINIEST, -TINIEST, 1e-310, 2.3e-308, 1e-200, 1e-162, 1e-155, 1e9, 1e140, 1e150, 1e154, -1e155, 1e170,
     1e172, 1e200, 1e290, -1e300, 1.5e308, -1.5e308, LARGEST, -LARGEST, math.nextafter(LARGEST, 0)]
)  # fmt: skip
BALANCES = st.integers(-5, 5).map(lambda n: 1_234_567_890.12 + n / 1000)
NEIGHBOURS = st.builds(
    lambda value, n: value + n * math.ulp(value),
    st.sampled_from([1e-300, 1.0, 1e9, 1e140, 1e155, 1e160, 1e171, 1.7e308]),
    st.integers(-9, 9),
)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
EDGES = st.builds(
    lambda edge, n: max(-(2**63), min(2**63 - 1, edge + n)),
    st.sampled_from([0, 2**53, -(2**53), 2**62, 2**63 - 1, -(2**63)]),
    st.integers(-4, 4),
)
# Tidemill refuses a number that looks like seconds.
TIMES = st.integers(-6 * 10**12, 9 * 10**12).filter(lambda at: not SECONDS_FROM <= at <= SECONDS_TO)


def pool(*kinds: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Draw a few values of one kind or of several kinds, so that several events have equal values."""
    return st.one_of(
        *(st.lists(kind, min_size=1, max_size=4) for kind in kinds), st.lists(st.one_of(*kinds), min_size=2)
    )


POOLS = st.fixed_dictionaries(
    {
        "v": pool(DOUBLES, NAMED, BALANCES, NEIGHBOURS),
        "i": pool(INTEGERS, EDGES, st.integers(-3, 3)),
        "b": st.just([True, False]),
        "s": pool(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3)),
        "at": pool(TIMES),
    }
)
# The exact sum is above the largest double, but rounds to it.
JUST_BEYOND = {"v": [LARGEST, 1.0], "i": [1], "b": [True], "s": [""], "at": [0]}
PLACE = st.integers(0, 2**16)
EVENT = st.tuples(st.integers(0, 300), st.sampled_from(["a", "b", None]), *(PLACE for _ in FUNCTIONS))
BATCH = st.tuples(st.lists(EVENT, min_size=1, max_size=12), st.none() | st.integers(1, 5))


def event(pools: dict[str, list[Any]], second: int, k: str | None, *places: int) -> Event:
    """Return an event whose values are at these places of the pools; every seventh place is null."""
    members: Event = {"ts": BASE + second * 1_000, "k": k}
    for (field, values), place in zip(pools.items(), places, strict=True):
        members[field] = None if place % 7 == 6 else values[place % len(values)]
    return members


@pytest.fixture
def stage(make_schema: Callable[[PipelineConfig], Any], monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr(merging, "SKETCH_BYTES", 400)
    return Stage(*make_schema(CONFIG))


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(POOLS, st.lists(BATCH, min_size=1, max_size=5))
@example(JUST_BEYOND, [([(0, "a", 0, 0, 0, 0, 0), (1, "a", 1, 0, 0, 0, 0)], None)])
def test_answers_of_any_finite_values_are_right(
    stage: Stage, pools: dict[str, list[Any]], batches: list[tuple[list[Any], int | None]]
) -> None:
    """Some events are late and reopen windows, and some join sessions."""
    stage.wipe()
    for events, closed in batches:
        stage.commit(*(event(pools, *drawn) for drawn in events))
        if closed is not None:
            stage.close(BASE + closed * MINUTE)
    stage.verify()


def single(minute: float, v: float | None = None, i: int | None = None, k: str = "a") -> Event:
    return {"ts": BASE + round(minute * MINUTE), "k": k, "v": v, "i": i}


def answers(stage: Stage, name: str, metric: str, text: str = "") -> dict[Any, Any]:
    """Return a metric by group and by minute of the window's start, as the API answers it."""
    starts = {rfc3339_ms(BASE + n * MINUTE): n for n in range(-5, 60)}
    return {(*key[:-1], starts[key[-1]]): row[metric] for key, row in stage.ask(name, text).items()}


def test_a_huge_value_makes_only_metrics_beyond_a_double_null(stage: Stage) -> None:
    """Other metrics, windows and groups keep right answers."""
    stage.commit(single(4, 100.0), single(4.5, 10.0, k="b"), single(5, 1.5e308))
    stage.commit(single(6, 1.5e308), single(6.5, 11.0, k="b"), single(9, 12.0, k="b"))
    assert answers(stage, "tumbling", "v_sum")["a", 5] == 1.5e308
    assert {start: value for (k, start), value in answers(stage, "hopping", "v_sum").items() if k == "a"} == {
        2: 100.0, 3: 1.5e308, 4: None, 5: None, 6: 1.5e308,
    }  # fmt: skip
    assert answers(stage, "hopping", "v_variance")["a", 4] is None
    assert answers(stage, "hopping", "v_stddev")["a", 6] == 0
    assert answers(stage, "hopping", "v_max")["a", 4] == 1.5e308
    assert answers(stage, "hopping", "n")["a", 4] == 3
    assert answers(stage, "hopping", "v_sum")["b", 4] == 21.0
    stage.verify()


NAMED_CASES: list[tuple[list[list[float]], dict[str, float | None]]] = [
    ([[1e300], [1e300]], {"v_sum": 2e300, "v_avg": 1e300, "v_variance": 0, "v_stddev": 0}),
    ([[1.7e308, 1.7e308, -1.7e308], [-1.6e308]], {"v_sum": 1.7e308 - 1.6e308, "v_variance": None}),
    ([[1e200], [-1e200]], {"v_sum": 0, "v_avg": 0, "v_variance": None, "v_stddev": None}),
    ([[1e150], [-1e150]], {"v_variance": 1e300, "v_stddev": 1e150}),
    ([[LARGEST], [LARGEST]], {"v_sum": None, "v_avg": None, "v_variance": 0, "v_max": LARGEST}),
    ([[LARGEST], [0.0], [1.0]], {"v_sum": LARGEST, "v_variance": None}),
    ([[5e-324], [5e-324]], {"v_sum": 1e-323, "v_avg": 5e-324, "v_variance": 0}),
    ([[5e-324], [0.0], [0.0]], {"v_sum": 5e-324, "v_avg": 0, "v_variance": 0, "v_stddev": 0}),
    ([[1e-200], [3e-200]], {"v_sum": 4e-200, "v_variance": 0}),
    ([[0.1, 0.1, 0.1], [0.1], [0.1] * 7], {"v_variance": 0, "v_stddev": 0}),
]


def test_named_cases_are_right_in_a_window_in_panes_and_in_a_roll_up(stage: Stage) -> None:
    for batches, wanted in NAMED_CASES:
        stage.wipe()
        for n, values in enumerate(batches):
            stage.commit(*(single(minute, value) for value in values for minute in (0, 30 + n)))
        for name, text, key in (
            ("tumbling", "", ("a", 0)), ("hopping", "", ("a", 30)), ("tumbling", "granularity=30m", ("a", 30)),
        ):  # fmt: skip
            for metric, value in wanted.items():
                got = answers(stage, name, metric, text)[key]
                assert got == (pytest.approx(value, rel=1e-9) if value else value), (batches, metric, name, text)


def test_sessions_of_huge_values_can_be_joined(stage: Stage) -> None:
    stage.commit(single(0, 1.5e308), single(0.6, 1.5e308))
    stage.commit(single(0.3, 1.0))
    (row,) = stage.windows("visits").values()
    assert (row["n"], row["v_sum"], row["v_min"]) == (3, None, 1.0)
    stage.verify()


def test_the_variance_of_large_values_is_right_over_many_batches_and_panes(stage: Stage) -> None:
    """The values differ from 1e9 by cents. A mean in one double has a larger error than that."""
    rnd = random.Random(7)
    for _ in range(60):
        stage.commit(*(single(rnd.randrange(180) / 60, round(rnd.gauss(1e9, 0.01), 3)) for _ in range(5)))
    stage.verify()


def test_integers_beyond_the_precision_of_doubles_are_exact(stage: Stage) -> None:
    for n in (9007199254740993, 9007199254740992, 9007199254740995):
        stage.commit(single(0, i=n), single(n % 3 + 10, i=n))
    for name, start in (("tumbling", 0), ("hopping", 10)):
        row = {metric: answers(stage, name, metric)["a", start] for metric in ("i_quantile", "i_variance", "i_max")}
        assert row == {
            "i_quantile": 9007199254740995,
            "i_variance": pytest.approx(14 / 9, rel=1e-12),
            "i_max": 9007199254740995,
        }
    stage.commit(single(0, i=5), *(single(0, i=2**63 - 1 - n) for n in range(5)))
    stage.verify()


def test_rows_without_the_low_part_of_the_mean_stay_right(stage: Stage) -> None:
    stage.commit(*(single(0, v, v) for v in (1, 2, 3)))
    for store in (store for store in stage.stores if store.name not in (*MORE_OF.values(), "more_visits")):
        stage.connection.execute(
            f"UPDATE {stage.database.schema}.{store.table} SET _low_v = NULL, _low_i = NULL, _low_b = NULL"
        )
    stage.commit(*(single(n, v, v) for n, v in ((0, 7), (1, 8))))
    stage.verify()


def test_zero_and_minus_zero_are_one_group(stage: Stage) -> None:
    """Filled rows find the stored rows of the group, too."""
    stage.commit(single(0, -0.0, 1))
    stage.commit(single(0, 0.0, 1))
    rows = stage.ask("by_number", f"fill=zero&granularity=1h&from={BASE}&to={BASE + 60 * MINUTE}&metrics=n")
    assert [row["n"] for row in rows.values()] == [2]
