"""Tests of the unique names of stored columns, and of the conversion of earlier names."""

from __future__ import annotations

import itertools
import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill_contract.functions.fill_history import FillHistory, FillPeriods
from tidemill_contract.functions.partials import (
    Kind,
    Partial,
    build_layout,
    column_name,
    completeness_partial,
    internal_partial,
    needed_columns,
)
from tidemill_contract.resource.spec import AggregationSpec
from tidemill_contract.tables.windows import window_table
from tidemill_operator.plan.live import LiveSchema
from tidemill_operator.plan.model import Schema
from tidemill_operator.plan.postgres.fill_histories import fill_histories_after
from tidemill_operator.plan.postgres.migration import with_current_names, with_types_of
from tidemill_processor.batches import batch
from tidemill_processor.detect import event_anomalies as watching
from tidemill_processor.merge import aggregate, sessions

KINDS: tuple[Kind, ...] = get_args(Kind)
FUNCTIONS = ("count", "sum", "avg", "min", "max", "first", "last", "variance", "stddev", "quantile", "distinct", "topk")
OWN = ("rev", "since", "after", "revision", "start", "end", "pane", "t", "p", "o", "i", "e", "at", "data", "centre")
PIECES = st.sampled_from([*KINDS, *OWN, "at", "home", "x", "0", "1", "_", "__", ""])


def _legal(parts: list[str], between: str) -> str:
    """Return the name of a field from pieces: it begins with a letter and has at most 41 characters."""
    return (between.join(parts).lstrip("_0123456789") or "x")[:41]


FIELDS = st.builds(_legal, st.lists(PIECES, min_size=1, max_size=5), st.sampled_from(["_", "", "__"]))
# Names beside partials in frames, temporary tables and statements.
FIXED = {
    *(batch.TIME, batch.PARTITION, batch.OFFSET, batch.INDEX, batch.DATA, aggregate.PANE, aggregate.AFTER),
    *(aggregate.END, aggregate._POSITION, sessions.SINCE, sessions.OLD, sessions._JOINS, sessions._COVERED),
    *(sessions._SESSION, watching._VALUE, "_rev", "_since", "_after", "_e", "_start", "_place", "_fresh", "_first"),
    *(
        internal_partial(kind, name, "bigint").column
        for kind in ("min", "max")
        for name in ("start", "end", "since", "rev")
    ),
}


@given(st.lists(FIELDS, min_size=1, max_size=6, unique=True))
def test_every_kind_and_field_has_another_column(fields: list[str]) -> None:
    """No column equals a fixed name or is longer than Postgres allows."""
    columns = [column_name(kind, field) for kind in KINDS for field in fields]
    columns += [Partial("count", None, "").column, Partial("revision", None, "").column]
    columns += [f"_{prefix}_{field}" for prefix in ("having", "null") for field in fields]
    assert len(set(columns)) == len(columns)
    assert not FIXED & set(columns)
    assert max(map(len, columns)) <= 63


def test_the_longest_names_fit() -> None:
    """Tables and indexes of an aggregation with the longest name fit too."""
    for kind, field in itertools.product(KINDS, ("at_" + "x" * 38, "x" * 41)):
        assert len(column_name(kind, field)) <= 63
    wanted = aggregation([("m", "count", None)], window={"type": "session", "gap": "1m"}, groupBy=["k"])
    table = window_table("a" * 41 + "_v9999999999", build_layout(wanted, {"k": "string"}))
    names = [table.name, *(name for name, _ in table.indexes)]
    assert len(set(names)) == 4
    assert all(len(name) <= 63 and (name == table.name or name.startswith(f"{table.name}_")) for name in names)


def test_unambiguous_names_are_those_of_earlier_versions() -> None:
    """Most existing tables keep their columns."""
    assert column_name("last", "home") == "_last_home"
    assert column_name("last_at", "home") == "_last_at_home"
    assert column_name("last_at", "at_home") == "_last_at_at_home"
    assert column_name("last", "atlas") == "_last_atlas"
    assert column_name("first", "at") == "_first_at"
    assert column_name("n", "at_home") == "_n_at_home"
    assert column_name("last", "at_home") == "_last__at_home"
    assert completeness_partial("x").column == "_whole_x"


def aggregation(metrics: list[tuple[str, str, str | None]], **members: Any) -> AggregationSpec:
    listed = [
        {"name": name, "function": function, "field": field, "q": 0.5 if function == "quantile" else None}
        for name, function, field in metrics
    ]
    window = {"type": "tumbling", "size": "1m"}
    return AggregationSpec.model_validate({"name": "a", "window": window, **members, "metrics": listed})


@given(st.lists(st.tuples(st.sampled_from(FUNCTIONS), FIELDS), min_size=1, max_size=32))
def test_every_metric_has_all_its_partials(wanted: list[tuple[str, str]]) -> None:
    """Each metric has all its columns, each with the type of its field."""
    layout = build_layout(
        aggregation([(f"m{n}", *pair) for n, pair in enumerate(wanted)]), {field: "number" for _, field in wanted}
    )
    stored = {partial.column: partial for partial in layout.partials}
    assert len(stored) == len(layout.partials) == len({(p.kind, p.field) for p in layout.partials})
    for metric, _ in layout.metrics:
        for column in needed_columns(metric):
            assert stored[column].field == (metric.field if column != "_count" else None)


SHAPE = {"groupBy": [], "window": {"type": "tumbling", "size": "1h", "grace": "0s"}}


def earlier_schema(
    columns: dict[str, str], partials: list[str], fed: dict[str, FillPeriods] | None = None
) -> LiveSchema:
    """Return a schema with an aggregation as an earlier Tidemill stored it."""
    shape = json.dumps({**SHAPE, "partials": partials})
    return LiveSchema(
        shapes={("a", 1): shape}, columns={"a_v1": columns}, fill_histories={("a", 1): FillHistory(1, fed or {})}
    )


def test_an_ambiguous_column_is_renamed_if_it_holds_values() -> None:
    """Everything stored about the column is renamed too. The order of the values of another field keeps its name."""
    current = with_current_names(
        earlier_schema(
            {"_last_at_home": "double precision", "_last_at_at_home": "bigint[]", "_last_home": "double precision"},
            ["_last_at_home", "_last_at_at_home", "_last_home"],
            {"_last_at_home": FillPeriods(1)},
        )
    )
    assert current.renames == {"a_v1": {"_last_at_home": "_last__at_home"}}
    assert set(current.columns["a_v1"]) == {"_last__at_home", "_last_at_at_home", "_last_home"}
    assert json.loads(current.shapes["a", 1])["partials"] == ["_last__at_home", "_last_at_at_home", "_last_home"]
    assert current.fill_histories["a", 1].columns == {"_last__at_home": FillPeriods(1)}
    order = earlier_schema({"_last_home": "text", "_last_at_home": "bigint[]", "_first_at": "bigint"}, [])
    assert with_current_names(order).renames == {}


def test_a_metric_that_lost_a_shared_column_gets_a_new_one() -> None:
    """Only one of two metrics had the column. The column of the other is filled like an added column."""
    metrics = [("x", "last", "at_home"), ("y", "last", "home")]
    types = {"home": "number", "at_home": "number"}
    for wanted, kind, fresh in (
        (metrics, "double precision", {"_last_at_home"}),
        (metrics[::-1], "bigint[]", {"_last__at_home"}),
    ):
        columns = {"_last_at_home": kind, "_last_at_at_home": "bigint[]", "_last_home": "double precision"}
        live = with_current_names(earlier_schema({"_count": "bigint", **columns}, ["_count", *columns]))
        layout = build_layout(aggregation(wanted), types)
        histories = FillHistory().after_change(
            json.loads(live.shapes["a", 1])["partials"],
            [p.column for p in layout.partials],
            existing=live.columns["a_v1"],
            closed_until=None,
        )
        assert set(histories.columns) == fresh


def test_a_column_with_the_present_name_is_never_overwritten() -> None:
    """An earlier Tidemill ran in between and created the former name again."""
    live = earlier_schema({"_last_at_home": "text", "_last__at_home": "text"}, ["_last_at_home"])
    current = with_current_names(live)
    assert current.renames == {}
    assert (
        fill_histories_after(Schema("s", "o", "w", "r", (), (), (), 1, 1), current)["a", 1]
        .columns["_last_at_home"]
        .since
        is None
    )


def test_types_that_are_not_stored_come_from_the_accepted_spec() -> None:
    """Without that spec, or with a spec that cannot be read, no types are stored."""
    accepted = {
        "source": {"fields": [{"name": "v", "type": "integer"}]},
        "transform": {"derive": [{"name": "w", "expression": "v / 2"}]},
        "aggregations": [aggregation([("n", "count", None)]).model_dump(by_alias=True, exclude_unset=True)],
    }
    live = earlier_schema({"_count": "bigint", "_uniques_v": "bytea", "_frequent_w": "bytea"}, ["_count"])

    def types(accepted_spec: Any) -> Any:
        return json.loads(
            with_current_names(LiveSchema(None, live.shapes, live.columns, accepted=accepted_spec)).shapes["a", 1]
        )["types"]

    assert types(accepted) == {"_uniques_v": ["v", "integer"], "_frequent_w": ["w", "number"]}
    assert types(None) == types({"source": "?"}) == {}
    own = json.dumps({**SHAPE, "partials": [], "types": {"_n_v": ["v", "string"]}}, sort_keys=True)
    assert with_current_names(LiveSchema(None, {("a", 1): own}, accepted=accepted)).shapes["a", 1] == own


def test_types_of_removed_columns_stay_stored() -> None:
    before = json.dumps({"types": {"_n_v": ["v", "string"], "_n_w": ["w", "string"]}})
    after = json.dumps({"types": {"_n_w": ["w", "integer"]}})
    assert json.loads(with_types_of(after, before))["types"] == {"_n_v": ["v", "string"], "_n_w": ["w", "integer"]}
    assert with_types_of(after, None) == after


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_begins_like_a_fixed_prefix(kind: str) -> None:
    """A kind with the name of a prefix would give columns like `_having_x`."""
    assert not {"having", "null", "pane", "rev", "since", "after"} & {kind, kind.split("_")[0]}


def test_no_other_kind_begins_like_a_shorter_one() -> None:
    """The names of existing columns would become ambiguous."""
    prefixes = {(short, long) for short in KINDS for long in KINDS if long.startswith(f"{short}_")}
    assert prefixes == {("first", "first_at"), ("last", "last_at")}, "give the new kind another name"
