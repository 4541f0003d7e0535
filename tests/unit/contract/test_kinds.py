"""Tests of kinds of windows, detectors and metrics: parsing, dumping, and forms that are derived from the kinds."""

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
from tidemill_contract.resource.kinds.base import FaultTexts, Kinds, Member, Model
from tidemill_contract.resource.kinds.detectors import DETECTORS, AutoDetector
from tidemill_contract.resource.kinds.metrics import METRICS
from tidemill_contract.resource.kinds.windows import WINDOWS, HoppingWindow, SessionWindow, TumblingWindow
from tidemill_contract.resource.spec import AggregationSpec, AnomalySpec
from tidemill_operator.resource.kinds import member_rule

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
def test_a_window_is_parsed_to_its_kind_and_dumped_as_it_was_written(
    members: dict[str, str], kind: type[Model]
) -> None:
    """The window lacks members of other kinds. A dump contains only members that were set."""
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
def test_errors_of_a_kind_have_the_paths_of_its_members(members: dict[str, str], places: list[tuple[str, str]]) -> None:
    """The paths of pydantic's unions would contain the name of the kind."""
    with pytest.raises(ValidationError) as caught:
        aggregation(members)
    assert [error["loc"] for error in caught.value.errors()] == places


def test_the_written_form_of_a_window_has_the_members_of_all_kinds() -> None:
    names = ["type", "size", "zone", "offset", "hop", "gap", "max_length", "grace"]
    assert list(WINDOWS.flat_model.model_fields) == names
    assert list(dict(WINDOWS.to_flat(WINDOWS.make(**HOPPING)))) == names
    having = ", ".join(WINDOWS.members["size"].kinds)
    assert str(WINDOWS.flat_model.model_fields["size"].description).startswith(f"Length of a window ({having}):")
    assert having.startswith("tumbling, hopping")


def test_every_kind_of_window_is_in_random_pipelines_and_has_a_name_on_the_dashboard() -> None:
    match = re.search(r"^const KINDS = \{\n(.*?)^\};$", FORMAT.read_text(), re.MULTILINE | re.DOTALL)
    assert match is not None
    assert re.findall(r"^  (\w+): \{", match[1], re.MULTILINE) == list(WINDOWS.by_name)
    assert list(DRAWN) == list(WINDOWS.by_name)


def test_a_written_window_without_a_required_member_has_no_kind() -> None:
    assert WINDOWS.to_kind(WINDOWS.flat_model(type="hopping", size="1h")) is None
    assert WINDOWS.to_kind(WINDOWS.flat_model(type="tumbling", size="1h", gap="1m")) == WINDOWS.make(
        type="tumbling", size="1h"
    )


def test_a_detector_without_a_type_is_auto() -> None:
    """A dump contains only members that were set. The described form has the settings of all kinds."""
    rule = {"name": "r", "aggregation": "a", "metric": "n"}
    assert type(AnomalySpec.model_validate(rule).detector) is AutoDetector
    detector = AnomalySpec.model_validate(rule | {"detector": {"warmup": 9}}).detector
    assert type(detector) is AutoDetector
    assert detector.model_dump(exclude_unset=True) == {"warmup": 9}
    assert DETECTORS.to_flat(DETECTORS.make(type="ewma", weight=0.5)).model_dump(by_alias=True) == {
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
def test_the_signature_of_a_detector_contains_the_settings_that_its_state_depends_on(
    members: dict[str, Any], signature: str
) -> None:
    """The signature is stored with each state. If the signature changed, all states would be discarded."""
    assert DETECTORS.make(**members).signature == signature


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=list(FUNCTIONS))
def test_the_kind_of_a_metric_has_exactly_the_parameters_of_its_function(function: Function) -> None:
    """A parameter that is absent is not dumped, as the function has the default."""
    kind = METRICS.by_name[function.name]
    assert set(kind.model_fields) == {"name", "function", "field", "where", *function.parameters.model_fields}
    assert kind.model_fields["field"].is_required() is not function.field_optional
    members = {"name": "m", "function": function.name, "field": "v", **parameters_for(function.name, {"w": "integer"})}
    parsed = METRICS.make(**members)
    assert type(parsed) is kind
    assert parsed.model_dump(by_alias=True, exclude_none=True) == members


def test_topk_lists_ten_values_by_default() -> None:
    metric = METRICS.make(name="m", function="topk", field="v")
    assert metric.model_dump(exclude_none=True).keys() == {"name", "function", "field"}
    assert FUNCTIONS["topk"].parameters.of(metric).model_dump() == {"k": 10}


def fault_text(kind: str, member: Member) -> tuple[str, str]:
    return kind, member.alias


def kinds_of(*models: type[BaseModel]) -> Kinds[Any]:
    kinds: Any = models
    return Kinds(
        kinds,
        tag="type",
        title="T",
        doc="D.",
        tag_description="S.",
        fault_texts=FaultTexts(missing=fault_text, unsupported=fault_text),
    )


class First(Model):
    type: Literal["first"] = "first"
    needed: int = Field(ge=0, description="N.")
    shared: int = Field(ge=0, description="S.")


class Second(Model):
    type: Literal["second"]
    shared: int | None = Field(None, description="S.")


class Third(Model):
    type: Literal["third"]


def test_a_member_must_have_the_same_type_and_bounds_in_every_kind() -> None:
    """The CRD can describe only one type and one range of a member."""
    with pytest.raises(TypeError, match="shared has different types or bounds in the kinds first, second"):
        kinds_of(First, Second)


class Fourth(Model):
    type: Literal["fourth"]
    shared: int = Field(0, ge=0, description="S.")


@pytest.mark.parametrize("kind", ["first", "fourth", "third"])
@pytest.mark.parametrize("given", [(), ("needed",), ("shared",), ("needed", "shared")])
def test_model_and_crd_agree_whether_a_member_belongs_to_a_kind(kind: str, given: tuple[str, ...]) -> None:
    """The member is required in some kinds, optional in some, and absent in others."""
    kinds = kinds_of(First, Fourth, Third)
    item = {"type": kind, **dict.fromkeys(given, 1)}
    instance = kinds.flat_model.model_validate(item)
    for member in kinds.members.values():
        rule = member_rule(kinds, member, place="self", tag="self.type")
        assert rule_of(rule)(item) == (kinds.fault(instance, member, "") is None), rule
