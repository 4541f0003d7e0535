"""Tests of the CustomResourceDefinition: generated, complete, and within the limits of the API server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from tidemill_contract.resource.spec import PipelineSpec
from tidemill_operator.resource import crd
from tidemill_operator.resource.rules import RULES
from tidemill_operator.resource.schema import structural_schema

FILE = Path(__file__).parents[4] / "crds" / "analyticspipelines.yaml"
VERSION: Any = crd.definition()["spec"]["versions"][0]
SCHEMA = VERSION["schema"]["openAPIV3Schema"]


def nodes(
    schema: dict[str, Any], path: str = "", *, in_list: bool = False
) -> Iterator[tuple[str, dict[str, Any], bool]]:
    yield path, schema, in_list
    for name, member in schema.get("properties", {}).items():
        yield from nodes(member, f"{path}.{name}", in_list=in_list)
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]", in_list=True)
    if isinstance(schema.get("additionalProperties"), dict):
        yield from nodes(schema["additionalProperties"], f"{path}.*", in_list=True)


NODES = [node for part in ("spec", "status") for node in nodes(SCHEMA["properties"][part], part)]


def test_the_file_equals_the_output_of_the_generator(capsys: pytest.CaptureFixture[str]) -> None:
    assert crd.main() == 0
    assert capsys.readouterr().out == FILE.read_text(), (
        "run: python -m tidemill_operator.resource.crd > crds/analyticspipelines.yaml"
    )


def test_the_file_is_yaml_of_one_definition() -> None:
    document = yaml.safe_load(FILE.read_text())
    assert document == crd.definition()
    assert document["metadata"]["name"] == "analyticspipelines.tidemill.dev"
    assert document["spec"]["names"]["shortNames"] == ["apl"]


@pytest.mark.parametrize(("path", "schema", "in_list"), NODES, ids=[path for path, _, _ in NODES])
def test_every_node_is_structural_and_bounded(path: str, schema: dict[str, Any], in_list: bool) -> None:
    assert not {"$ref", "anyOf", "oneOf", "allOf", "const", "title"} & schema.keys()
    kind = schema.get("type")
    assert kind or schema["x-kubernetes-preserve-unknown-fields"]
    if not path.endswith(("[]", ".*")):
        assert schema["description"].endswith("."), "the description is a sentence"
    if kind == "string":
        assert "enum" in schema or "maxLength" in schema
        re.compile(schema.get("pattern", ""))
    if kind == "array":
        assert "maxItems" in schema
        assert "x-kubernetes-list-type" in schema
    if kind == "object" and "properties" not in schema:
        assert "maxProperties" in schema
    for bound in ("exclusiveMinimum", "exclusiveMaximum"):
        assert isinstance(schema.get(bound, True), bool)
    if in_list:
        assert "default" not in schema, "defaults in lists make appliers see drift"


def test_lists_of_named_things_are_maps_by_name() -> None:
    by_name = {path for path, schema, _ in NODES if schema.get("x-kubernetes-list-map-keys") == ["name"]}
    assert by_name >= {
        "spec.source.fields",
        "spec.transform.derive",
        "spec.aggregations",
        "spec.aggregations[].metrics",
        "spec.anomalies",
    }


def test_members_with_platform_defaults_have_no_default() -> None:
    """With a default here, a member that is removed from a file would shrink the topic."""
    by_path = {path: schema for path, schema, _ in NODES}
    for path in (
        "source.topic.partitions",
        "source.topic.replicationFactor",
        "processor.scaling.maxReplicas",
        "auth.required",
    ):
        assert "default" not in by_path[f"spec.{path}"]


def test_replicas_have_a_default() -> None:
    """The scale subresource fails if its path is empty."""
    processor = SCHEMA["properties"]["spec"]["properties"]["processor"]
    assert processor["default"] == {}
    assert processor["properties"]["replicas"]["default"] == 1
    assert VERSION["subresources"]["scale"]["specReplicasPath"] == ".spec.processor.replicas"
    assert {"replicas", "selector"} <= SCHEMA["properties"]["status"]["properties"].keys()


def test_kubectl_get_shows_these_columns_in_this_order() -> None:
    columns = [(column["name"], column["priority"]) for column in VERSION["additionalPrinterColumns"]]
    assert columns == [
        ("READY", 0),
        ("LAG", 0),
        ("REPLICAS", 0),
        ("STAGE", 0),
        ("FRESHNESS", 0),
        ("AGE", 0),
        ("PAUSED", 1),
        ("TOPICS", 1),
        ("API", 1),
    ]


def test_every_member_of_the_model_is_in_the_schema() -> None:
    def members(model: type[BaseModel]) -> set[str]:
        return {field.alias or name for name, field in model.model_fields.items()}

    assert SCHEMA["properties"]["spec"]["properties"].keys() == members(PipelineSpec)


def test_rules_name_members_that_exist() -> None:
    """A misspelt member would be a CEL error only at the API server."""
    names = {name for _, schema, _ in NODES for name in schema.get("properties", {})} | {"metadata", "spec"}
    macros = {"all", "exists", "format", "map", "matches"}
    for place, rules in RULES.items():
        for rule in rules:
            for text in (rule.rule, rule.text):
                expression = re.sub(r"'[^']*'", "''", text)
                used = set(re.findall(r"\.([a-zA-Z]+)", expression)) - macros
                assert used <= names, (place, text)
                assert expression.count("(") == expression.count(")")
            assert rule.message
            assert {*filter(None, rule.at.split("."))} <= names


def test_a_model_without_bounds_is_refused() -> None:
    class Unbounded(BaseModel):
        text: str

    with pytest.raises(ValueError, match=r"spec.text has no maxLength"):
        structural_schema(Unbounded)
