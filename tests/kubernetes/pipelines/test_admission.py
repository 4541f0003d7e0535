"""Tests of the CRD's rules on a real API server: which specs it accepts, and the messages of its refusals."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from in_cluster.admission_cases import CHANGES, LOOKUP, NAMES, REFUSED, UNKNOWN
from in_cluster.admission_specs import base, resource, with_member
from tidemill_operator.actuators.kubernetes.api import PIPELINE, Document
from tidemill_operator.errors import TidemillError
from tidemill_operator.resource.rules import RULES

pytestmark = pytest.mark.kubernetes


def refusal(act: Callable[[], Any]) -> str:
    """Return the message of the refusal, or an empty string if the API server accepts."""
    try:
        act()
    except TidemillError as error:
        return str(error)
    return ""


def test_the_base_spec_of_all_cases_is_accepted(cluster: Any, namespace: str) -> None:
    assert refusal(lambda: cluster.api.create(resource(base(), namespace))) == ""


@pytest.mark.parametrize(("path", "value", "named", "words"), REFUSED, ids=[case[-1] for case in REFUSED])
def test_a_spec_that_breaks_a_rule_is_refused(
    cluster: Any, namespace: str, path: str, value: Any, named: str, words: str
) -> None:
    """The message names the member, the problem and a remedy."""
    answer = refusal(lambda: cluster.api.create(resource(with_member(base(), path, value), namespace)))
    assert f"spec.{named}: Invalid value:" in answer
    assert words in answer


@pytest.mark.parametrize(("name", "message"), NAMES)
def test_names_that_break_a_rule_are_refused(cluster: Any, namespace: str, name: str, message: str) -> None:
    answer = refusal(lambda: cluster.api.create(resource(base(), namespace, name)))
    assert f'metadata.name: Invalid value: "object": {message}' in answer


@pytest.mark.parametrize(("before", "path", "value", "message"), CHANGES, ids=[f"{c[1]}: {c[3]}" for c in CHANGES])
def test_changes_that_break_a_rule_are_refused(
    cluster: Any, namespace: str, before: Document, path: str, value: Any, message: str
) -> None:
    spec = base()
    for member, previous in before.items():
        spec = with_member(spec, member, previous)
    live = cluster.api.create(resource(spec, namespace))
    changed = {**live, "spec": with_member(live["spec"], path, value)}
    assert f'spec.{path}: Invalid value: "object": {message}' in refusal(lambda: cluster.api.replace(changed))


def test_more_partitions_are_admitted(cluster: Any, namespace: str) -> None:
    live = cluster.api.create(resource(base(), namespace))
    grown = {**live, "spec": with_member(live["spec"], "source.topic.partitions", 8)}
    assert refusal(lambda: cluster.api.replace(grown)) == ""


def test_every_message_of_a_rule_has_a_case() -> None:
    """Each message of a rule appears in a case, which shows that the rule works."""
    messages = "\n".join(case[-1] for case in (*REFUSED, *CHANGES, *NAMES))
    texts = {text for rules in RULES.values() for rule in rules for text in rule.text.split("'")[1::2] if " " in text}
    patterns = {text: re.sub("%[sd]", ".*", re.escape(text)) for text in texts}
    assert texts
    assert [text for text, pattern in patterns.items() if not re.search(pattern, messages)] == []


def test_a_message_that_would_be_too_long_lists_no_columns(cluster: Any, namespace: str) -> None:
    fields = [{"name": f"f{number:03}_{'x' * 36}", "type": "number"} for number in range(200)]
    spec = with_member(with_member(base(), "source.fields", fields), "transform", {"derive": []})
    answer = refusal(lambda: cluster.api.create(resource(spec, namespace)))
    assert f"aggregation by_country: groupBy column country {UNKNOWN}" in answer
    assert "known are" not in answer


def test_fields_of_lookups_are_columns(cluster: Any, namespace: str) -> None:
    """A lookup may name its key `on` or `true`: YAML 1.1 reads an unquoted `on` as `true`."""
    spec = with_member(base(), "aggregations.0.groupBy", ["region"])
    lookup = {("true" if key == "on" else key): value for key, value in LOOKUP.items()}
    for number, variant in enumerate((LOOKUP, lookup)):
        document = resource(with_member(spec, "lookups", [variant]), namespace, f"orders-{number}")
        assert refusal(lambda document=document: cluster.api.create(document)) == ""


def test_the_largest_spec_is_accepted(cluster: Any, namespace: str) -> None:
    """Lists and strings that rules read are at their limits. The rules stay within the API server's cost budget."""
    fields = [{"name": f"f{number:03}_{'x' * 36}", "type": "number"} for number in range(200)]
    derives = [{"name": f"d{number:03}_{'x' * 36}", "expression": f"f000_{'x' * 36} + 1"} for number in range(32)]
    names = [field["name"] for field in (*fields, *derives)]
    metrics = [
        {"name": f"m{n:02}_{'x' * 37}", "function": "max_by", "field": names[-1 - n], "by": names[-1 - n]}
        for n in range(32)
    ]
    aggregation = {"groupBy": names[100:108], "window": {"type": "tumbling", "size": "1m"}, "metrics": metrics}
    aggregations = [{"name": f"a{number:02}_{'x' * 37}", **aggregation} for number in range(16)]
    rule = {"aggregation": aggregations[-1]["name"], "metric": metrics[-1]["name"], "detector": {"type": "ewma"}}
    of_events = {"field": names[-1], "groupBy": names[-9:-1], "detector": {"type": "ewma"}}
    anomalies = [{"name": f"r{number:02}_{'x' * 37}", **(of_events if number % 2 else rule)} for number in range(32)]
    looked_up = [{"name": f"l{number:03}_{'x' * 36}", "type": "string"} for number in range(256)]
    lookups = [{**LOOKUP, "name": f"k{n}", "fields": looked_up[n * 32 : n * 32 + 32]} for n in range(8)]
    spec = {
        "source": {"topic": {"partitions": 1024}, "fields": fields},
        "lookups": lookups,
        "transform": {"derive": derives, "filter": " OR ".join([f"{names[0]} > 1"] * 18)[:1024]},
        "aggregations": aggregations,
        "anomalies": anomalies,
    }
    assert refusal(lambda: cluster.api.create(resource(spec, namespace, "a" * 40))) == ""
    live = cluster.api.get(PIPELINE, namespace, "a" * 40)
    assert refusal(lambda: cluster.api.replace({**live, "spec": {**live["spec"], "suspend": True}})) == ""
