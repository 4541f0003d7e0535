"""Kinds as types: what is read as which, what is dumped again, and what is made of the kinds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError

from drawn.kinds import rule_of
from drawn.metrics import parameters_for
from oracle.windows import DRAWN
from tidemill_contract.functions.base import Function
from tidemill_contract.functions.registry import FUNCTIONS
from tidemill_contract.resource.kinds.base import Kinds, Member, Model, Words
from tidemill_contract.resource.kinds.detectors import DETECTORS, AutoDetector
from tidemill_contract.resource.kinds.metrics import METRICS
from tidemill_contract.resource.kinds.windows import WINDOWS, HoppingWindow, SessionWindow, TumblingWindow
from tidemill_contract.resource.spec import AggregationSpec, AnomalySpec
from tidemill_operator.resource.kinds import in_its_place

FORMAT = Path(__file__).parents[3] / "workloads/api/tidemill_api/static/format.js"
HOPPING = {"type": "hopping", "size": "1h", "hop": "15m"}


def aggregation(window: Any) -> AggregationSpec:
    return AggregationSpec.model_validate(
        {"name": "a", "window": window, "metrics": [{"name": "n", "function": "count"}]}
    )


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        ({"type": "tumbling", "size": "1h"}, TumblingWindow),
        (HOPPING, HoppingWindow),
        ({"type": "tumbling", "size": "1mo", "zone": "Europe/Oslo", "offset": "6h"}, TumblingWindow),
        ({"type": "session", "gap": "5m", "maxLength": "1h"}, SessionWindow),
    ],
)
def test_a_window_is_read_as_its_kind_and_dumped_as_it_was_written(members: dict[str, str], kind: type[Model]) -> None:
    """A member of another kind is none of its attributes; what was not written is not dumped."""
    window = aggregation(members).window
    assert type(window) is kind
    assert window.model_dump(by_alias=True, exclude_unset=True) == members
    assert aggregation(members).model_dump(by_alias=True)["window"].keys() == {
        field.alias for field in kind.model_fields.values()
    }
    assert AggregationSpec.model_validate_json(aggregation(members).model_dump_json(by_alias=True)).window == window
    assert aggregation(window).window == window


@pytest.mark.parametrize(
    ("members", "places"),
    [
        ({"type": "tumbling", "size": "1h", "hop": "15m"}, [("window", "hop")]),
        ({"type": "hopping", "gap": "1h"}, [("window", "size"), ("window", "hop"), ("window", "gap")]),
        ({"type": "hopping", "size": "x", "gap": "1h"}, [("window", "size")]),
        ({"type": "sliding"}, [("window", "type")]),
        ({}, [("window", "type")]),
    ],
)
def test_errors_of_a_kind_are_at_its_members(members: dict[str, str], places: list[tuple[str, str]]) -> None:
    """Not below the name of the kind, as pydantic's own unions have it."""
    with pytest.raises(ValidationError) as caught:
        aggregation(members)
    assert [error["loc"] for error in caught.value.errors()] == places


def test_as_written_all_kinds_have_all_members() -> None:
    names = ["type", "size", "zone", "offset", "hop", "gap", "max_length", "grace"]
    assert list(WINDOWS.written.model_fields) == names
    assert list(dict(WINDOWS.widen(WINDOWS.make(**HOPPING)))) == names
    having = ", ".join(WINDOWS.members["size"].kinds)
    assert str(WINDOWS.written.model_fields["size"].description).startswith(f"Length of a window ({having}):")
    assert having.startswith("tumbling, hopping")


def test_every_kind_of_window_is_drawn_and_has_words_on_the_dashboard() -> None:
    words = re.search(r"^const KINDS = \{\n(.*?)^\};$", FORMAT.read_text(), re.MULTILINE | re.DOTALL)
    assert words is not None
    assert re.findall(r"^  (\w+): \{", words[1], re.MULTILINE) == list(WINDOWS.by_name)
    assert list(DRAWN) == list(WINDOWS.by_name)


def test_a_kind_that_lacks_what_it_needs_is_none() -> None:
    assert WINDOWS.narrow(WINDOWS.written(type="hopping", size="1h")) is None
    assert WINDOWS.narrow(WINDOWS.written(type="tumbling", size="1h", gap="1m")) == WINDOWS.make(
        type="tumbling", size="1h"
    )


def test_a_detector_is_auto_unless_it_says_otherwise() -> None:
    """What is written stays what is dumped; what is described has the settings of all kinds, as it always had."""
    rule = {"name": "r", "aggregation": "a", "metric": "n"}
    assert type(AnomalySpec.model_validate(rule).detector) is AutoDetector
    detector = AnomalySpec.model_validate(rule | {"detector": {"warmup": 9}}).detector
    assert type(detector) is AutoDetector
    assert detector.model_dump(exclude_unset=True) == {"warmup": 9}
    assert DETECTORS.widen(DETECTORS.make(type="ewma", weight=0.5)).model_dump(by_alias=True) == {
        "type": "ewma", "threshold": None, "warmup": 24, "cooldown": None, "weight": 0.5, "span": None, "period": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("members", "signature"),
    [
        ({"type": "auto", "warmup": 9, "threshold": 5}, "auto"),
        ({"type": "ewma"}, "ewma"),
        ({"type": "ewma", "weight": 0.5}, "ewma 0.5"),
        ({"type": "mad", "span": 50}, "mad 50"),
        ({"type": "seasonal", "period": "week"}, "seasonal week"),
    ],
)
def test_states_are_of_the_settings_that_they_depend_on(members: dict[str, Any], signature: str) -> None:
    """It is stored with each state: under another text, all detectors would start anew."""
    assert DETECTORS.make(**members).signature == signature


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=list(FUNCTIONS))
def test_a_metric_has_its_functions_parameters_and_no_others(function: Function) -> None:
    """A parameter that is left out stays so: the default is the function's."""
    kind = METRICS.by_name[function.name]
    assert set(kind.model_fields) == {"name", "function", "field", "where", *function.parameters.model_fields}
    assert kind.model_fields["field"].is_required() is not function.alone
    written = {"name": "m", "function": function.name, "field": "v", **parameters_for(function.name, {"w": "integer"})}
    made = METRICS.make(**written)
    assert type(made) is kind
    assert made.model_dump(by_alias=True, exclude_none=True) == written


def test_topk_lists_ten_values_where_nothing_is_said() -> None:
    metric = METRICS.make(name="m", function="topk", field="v")
    assert metric.model_dump(exclude_none=True).keys() == {"name", "function", "field"}
    assert FUNCTIONS["topk"].parameters.of(metric).model_dump() == {"k": 10}


def words(kind: str, member: Member) -> tuple[str, str]:
    return kind, member.alias


def kinds_of(*models: type[BaseModel]) -> Kinds[Any]:
    kinds: Any = models
    return Kinds(kinds, tag="type", title="T", doc="D.", tag_says="S.", words=Words(missing=words, foreign=words))


class First(Model):
    type: Literal["first"] = "first"
    needed: int = Field(ge=0, description="N.")
    shared: int = Field(ge=0, description="S.")


class Second(Model):
    type: Literal["second"]
    shared: int | None = Field(None, description="S.")


class Third(Model):
    type: Literal["third"]


def test_a_member_means_the_same_in_every_kind() -> None:
    """The CRD can say only one type and one range of it."""
    with pytest.raises(TypeError, match="shared has different types or bounds in the kinds first, second"):
        kinds_of(First, Second)


class Fourth(Model):
    type: Literal["fourth"]
    shared: int = Field(0, ge=0, description="S.")


@pytest.mark.parametrize("kind", ["first", "fourth", "third"])
@pytest.mark.parametrize("given", [(), ("needed",), ("shared",), ("needed", "shared")])
def test_model_and_crd_agree_on_where_a_member_belongs(kind: str, given: tuple[str, ...]) -> None:
    """Some kinds need it, some may have it, others have it not."""
    kinds = kinds_of(First, Fourth, Third)
    item = {"type": kind, **dict.fromkeys(given, 1)}
    written = kinds.written.model_validate(item)
    for member in kinds.members.values():
        rule = in_its_place(kinds, member, place="self", tag="self.type")
        assert rule_of(rule)(item) == (kinds.fault(written, member, "") is None), rule
