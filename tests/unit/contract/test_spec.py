"""Tests of the resource's model: defaults, refused values, and serialization to JSON."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from tidemill_contract.resource.documents import load_documents
from tidemill_contract.resource.kinds.metrics import METRICS
from tidemill_contract.resource.spec import AnalyticsPipeline, PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig

EXAMPLES = sorted((Path(__file__).parents[3] / "crds" / "examples").glob("*.yaml"))


def example(name: str) -> AnalyticsPipeline:
    text = next(file for file in EXAMPLES if file.stem == name).read_text()
    return AnalyticsPipeline.model_validate(load_documents(text)[0])


def test_every_committed_example_is_checked() -> None:
    assert [file.stem for file in EXAMPLES] == ["flights", "server-metrics", "web-traffic"]


def test_absent_members_of_a_spec_have_their_defaults() -> None:
    spec = example("flights").spec
    assert spec.reclaim_policy == "Retain"
    assert spec.source.topic.replication_factor is None, "the platform sets the default"
    assert spec.source.event_time.max_future == "1h"
    assert spec.processor.replicas == 1
    assert spec.auth.required is None, "the platform sets the default"
    assert spec.aggregation("overall").group_by == []


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_a_config_is_read_from_json_as_it_was_written(file: Path) -> None:
    pipeline = example(file.stem)
    refs = tuple(AggregationRef(name=a.name) for a in pipeline.spec.aggregations)
    config = PipelineConfig(
        namespace="analytics", name=pipeline.metadata.name, generation=3, spec=pipeline.spec, aggregations=refs
    )
    assert PipelineConfig.from_json(config.to_json()) == config
    assert PipelineConfig.from_json(config.to_json()).to_json() == config.to_json()


def test_an_unknown_aggregation_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        example("flights").spec.aggregation("by_moon")


def test_a_spec_cannot_be_altered() -> None:
    spec = example("flights").spec
    with pytest.raises(ValidationError, match="frozen"):
        spec.suspend = True


@pytest.mark.parametrize(
    ("member", "value", "reason"),
    [
        ("suspend", "true", "a text is not a boolean"),
        ("suspend", 1, "a number is not a boolean"),
        ("reclaimPolicy", "retain", "case matters"),
        ("extra", 1, "unknown members are refused"),
        ("reclaim_policy", "Retain", "names are in camel case"),
    ],
)
def test_values_of_another_type_and_unknown_members_are_refused(member: str, value: object, reason: str) -> None:
    raw = example("flights").spec.model_dump(by_alias=True) | {member: value}
    with pytest.raises(ValidationError):
        PipelineSpec.model_validate(raw, by_alias=True, by_name=False)


@pytest.mark.parametrize(("q", "valid"), [(0, False), (1, False), (-0.5, False), (1e-9, True), (0.999999, True)])
def test_a_quantile_lies_between_min_and_max(q: float, valid: bool) -> None:
    document = {"name": "p", "function": "quantile", "field": "v", "q": q}
    if valid:
        assert METRICS.make(**document).q == q
    else:
        with pytest.raises(ValidationError, match="q"):
            METRICS.make(**document)
