"""Tests of metrics that are added, removed and added again, on a real Postgres: an answer is exact or null."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fill_history.model import BASE, METRICS, MINUTE, SHAPES, config
from fill_history.stage import Stage, staged
from tidemill_contract.runtime import WorkloadSettings
from tidemill_contract.times import rfc3339_ms
from tidemill_operator.plan.live import Owner
from tidemill_processor.database import Database
from tidemill_processor.detect.scanning import Scanner
from tidemill_processor.publish.producer import RecordSender
from tidemill_processor.publish.publisher import Publisher

pytestmark = pytest.mark.integration

EXAMPLES = int(os.environ.get("EXAMPLES", "12"))
BOTH = {name: ["n"] for name in SHAPES}
SETS = st.lists(st.sampled_from(sorted(METRICS)), max_size=5, unique=True)
STEP = st.one_of(
    st.tuples(st.just("plan"), SETS, SETS),
    st.tuples(st.just("commit"), st.integers(1, 12), st.sampled_from([0, 0, 0, 1, 2])),
    st.tuples(st.just("commit"), st.integers(1, 12), st.just(0)),
    st.tuples(st.just("close"), st.integers(0, 5), st.just(0)),
)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(STEP, min_size=4, max_size=14), st.integers(0, 10**9))
def test_each_answer_is_exact_or_null_after_any_edits(servers: Any, script: list[tuple[Any, ...]], seed: int) -> None:
    """No answer is a partial value, even if processors of older specs still write."""
    rnd = random.Random(seed)
    with staged(servers) as stage:
        stage.plan({name: ["n", "sv"] for name in SHAPES})
        for action, first, second in script:
            if action == "plan":
                tumbling = sorted(first) or (["n"] if not second else [])
                stage.plan({"tumbling": tumbling, "hopping": sorted(second)})
            elif action == "close":
                stage.close(BASE + first * MINUTE)
            else:
                events = [
                    (BASE + rnd.randrange(6 * MINUTE), rnd.choice("ab"), rnd.choice([None, float(rnd.randrange(9))]))
                    for _ in range(first)
                ]
                stage.commit(events, age=second)
            stage.verify()


def at(minute: float, group: str = "a", number: float | None = 1.0) -> tuple[int, str, float | None]:
    return BASE + round(minute * MINUTE), group, number


def values(stage: Stage, name: str, metric: str, text: str = "") -> dict[tuple[str, int], Any]:
    """Return a metric by group and by minute of the window's start, as the API answers it."""
    minutes = {rfc3339_ms(BASE + n * MINUTE): n for n in range(-5, 10)}
    answers = {key: row[metric] for key, row in stage.ask(name, text).items()}
    return {(key[0] if len(key) == 2 else "", minutes[key[-1]]): value for key, value in answers.items()}


def test_a_sum_that_is_added_within_a_window_is_null_in_it_and_exact_in_later_windows(servers: Any) -> None:
    """A group whose first event comes after the edit has an exact sum in that window."""
    with staged(servers) as stage:
        stage.plan(BOTH)
        stage.commit([at(0), at(1), at(1)])
        stage.plan({name: ["n", "sv"] for name in SHAPES})
        stage.commit([at(1.5), at(1.5, "b"), at(2), at(2), at(3)])
        assert values(stage, "tumbling", "n") == {("a", 0): 1, ("a", 1): 3, ("b", 1): 1, ("a", 2): 2, ("a", 3): 1}
        assert values(stage, "tumbling", "sv") == {
            ("a", 0): None, ("a", 1): None, ("b", 1): 1.0, ("a", 2): 2.0, ("a", 3): 1.0,
        }  # fmt: skip
        hopping = values(stage, "hopping", "sv")
        assert {start: value for (group, start), value in hopping.items() if group == "a"} == {
            -2: None, -1: None, 0: None, 1: None, 2: 3.0, 3: 1.0,
        }  # fmt: skip
        assert values(stage, "tumbling", "sv", "group_by=") == {
            ("", 0): None,
            ("", 1): None,
            ("", 2): 2.0,
            ("", 3): 1.0,
        }
        assert values(stage, "tumbling", "n", "sv__gte=0&metrics=n") == {("b", 1): 1, ("a", 2): 2, ("a", 3): 1}
        assert values(stage, "tumbling", "n", "sv__isnull=true") == {("a", 0): 1, ("a", 1): 3}
        stage.close(BASE + 10 * MINUTE)
        stage.verify()


def test_a_metric_that_needs_no_new_column_is_exact_at_once(servers: Any) -> None:
    """An average needs only the columns of an existing sum and count."""
    with staged(servers) as stage:
        stage.plan({name: ["nv", "sv"] for name in SHAPES})
        stage.commit([at(0, number=2.0), at(0, number=4.0)])
        stage.plan({name: ["nv", "sv", "av"] for name in SHAPES})
        assert values(stage, "tumbling", "av") == {("a", 0): 3.0}
        assert stage.admin.execute(
            'SELECT DISTINCT layout, fed::text FROM "tests__feeds"._aggregations'
        ).fetchall() == [(0, "{}")]


def test_a_metric_that_was_removed_for_a_time_is_exact_only_in_windows_closed_before(servers: Any) -> None:
    """The metric is null in windows that had or could have events in that time."""
    with staged(servers) as stage:
        stage.plan({name: ["n", "sv"] for name in SHAPES})
        stage.commit([at(0), at(1), at(2)])
        stage.close(BASE + MINUTE)
        stage.plan(BOTH)
        stage.commit([at(1), at(3)])
        stage.plan({name: ["n", "sv"] for name in SHAPES})
        stage.commit([at(3), at(4)])
        assert values(stage, "tumbling", "sv") == {
            ("a", 0): 1.0, ("a", 1): None, ("a", 2): None, ("a", 3): None, ("a", 4): 1.0,
        }  # fmt: skip
        assert values(stage, "tumbling", "n") == {("a", 0): 1, ("a", 1): 2, ("a", 2): 1, ("a", 3): 2, ("a", 4): 1}
        stage.verify()


def test_counts_are_null_in_windows_that_were_open_while_the_aggregation_was_removed(servers: Any) -> None:
    """The counts lack the events of that time."""
    with staged(servers) as stage:
        stage.plan(BOTH)
        stage.commit([at(0), at(1)])
        stage.close(BASE + MINUTE)
        stage.plan({"tumbling": [], "hopping": ["n"]})
        stage.commit([at(1)])
        stage.plan(BOTH)
        stage.commit([at(1), at(2)])
        assert values(stage, "tumbling", "n") == {("a", 0): 1, ("a", 1): None, ("a", 2): 1}


def test_a_superseded_processor_leaves_closed_windows_to_its_successor(servers: Any) -> None:
    """The old processor does not fill all their columns, so it neither publishes nor scans them."""
    with staged(servers) as stage:
        stage.plan(BOTH)
        stage.commit([at(0)])
        old = stage.writers[-1].config
        stage.plan({name: ["sv"] for name in SHAPES})
        stage.close(BASE + 5 * MINUTE)
        until = 'SELECT DISTINCT scanned_until, published_until FROM "tests__feeds"._aggregations'
        for now, expected in ((old, (None, None)), (stage.writers[-1].config, (BASE + 5 * MINUTE,) * 2)):
            database = Database(WorkloadSettings(), now, 10)
            stores = database.aggregations(stage.admin)
            publisher = Publisher(database, stores, now, RecordSender(Nowhere))
            for _ in range(20):
                for _, publish in publisher.duties(stage.admin, dict.fromkeys(SHAPES, BASE + 5 * MINUTE)):
                    publish()
                for store in stores:
                    Scanner(database, store, []).run(stage.admin, BASE + 5 * MINUTE)
            assert stage.admin.execute(until).fetchall() == [expected]


class Nowhere:
    """A producer whose broker acknowledges everything."""

    def produce(self, topic: str, value: bytes, key: bytes, **record: Any) -> None:
        pass

    def flush(self, seconds: float) -> int:
        return 0


def test_rows_of_a_former_owner_stay_old_when_generations_restart_at_1(servers: Any) -> None:
    """Another resource adopts the schema, and its first generation is 1."""
    with staged(servers) as stage:
        stage.number = 8
        stage.plan(BOTH)
        stage.admin.execute("UPDATE \"tests__feeds\"._offsets SET topic_id = 'x', next_offset = 0")
        stage.commit([at(0)])
        adopted = config(1, {name: ["n", "sv"] for name in SHAPES})
        stage.ensure(adopted, Owner("tests", "feeds", "uid-2", "local"), adopt=True)
        stage.number = 1
        stage.start(adopted)
        stage.commit([at(0), at(1)])
        assert values(stage, "tumbling", "sv") == {("a", 0): None, ("a", 1): 1.0}


def test_a_schema_without_histories_counts_its_columns_as_always_filled(servers: Any) -> None:
    """A metric that the same pass adds is null in windows that already have events."""
    with staged(servers) as stage:
        stage.plan({name: ["n", "sv"] for name in SHAPES})
        stage.commit([at(0)])
        stage.admin.execute(
            'ALTER TABLE "tests__feeds"._aggregations DROP COLUMN layout, DROP COLUMN fed;'
            'ALTER TABLE "tests__feeds".tumbling_v1 DROP COLUMN _since;'
            'ALTER TABLE "tests__feeds".hopping_v1 DROP COLUMN _since'
        )
        stage.plan({name: ["n", "sv", "mx"] for name in SHAPES})
        stage.commit([at(0), at(1)])
        assert values(stage, "tumbling", "sv") == {("a", 0): 2.0, ("a", 1): 1.0}
        assert values(stage, "tumbling", "mx") == {("a", 0): None, ("a", 1): 1.0}


def test_variances_stay_exact_when_a_schema_gets_the_low_parts_of_means(servers: Any) -> None:
    """No answer becomes null for the new column."""
    with staged(servers) as stage:
        stage.plan({name: ["n", "va"] for name in SHAPES})
        stage.commit([at(0, number=1.0), at(0, number=4.0), at(1)])
        stage.admin.execute(
            'ALTER TABLE "tests__feeds".tumbling_v1 DROP COLUMN _low_v;'
            'ALTER TABLE "tests__feeds".hopping_v1 DROP COLUMN _low_v;'
            'UPDATE "tests__feeds"._aggregations'
            " SET shape = jsonb_set(shape, '{partials}', (shape -> 'partials') - '_low_v')"
        )
        stage.plan({name: ["n", "va"] for name in SHAPES})
        assert values(stage, "tumbling", "va") == {("a", 0): 2.25, ("a", 1): 0}
        stage.commit([at(0, number=7.0), at(2)])
        assert values(stage, "tumbling", "va") == {("a", 0): 6.0, ("a", 1): 0, ("a", 2): 0}
        stage.verify()
