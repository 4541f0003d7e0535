"""Tests of validation: each broken file has exactly the expected errors, and `check` never raises."""

from __future__ import annotations

import argparse
import copy
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill_contract.resource.documents import DocumentError, load_documents
from tidemill_contract.resource.rules import TopicLimits
from tidemill_contract.resource.validate import _remedy, check_document
from tidemill_operator.cli import validate

ROOT = Path(__file__).parents[3]
FOLDER = Path(__file__).parent / "broken"
EXAMPLES = sorted((ROOT / "crds" / "examples").glob("*.yaml"))
FLIGHTS = load_documents((ROOT / "crds" / "examples" / "flights.yaml").read_text())[0]


def run(*files: str | Path) -> int:
    parser = argparse.ArgumentParser()
    validate.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["validate", *map(str, files)])
    return int(arguments.run(arguments))


def flights_with(path: str, value: Any) -> dict[str, Any]:
    """Return the flights example with one member replaced."""
    document: Any = copy.deepcopy(FLIGHTS)
    *steps, last = [int(s) if s.isdigit() else s for s in path.split(".")]
    target = document
    for step in steps:
        target = target[step]
    target[last] = value
    return dict(document)


def _patched(replace: dict[str, str]) -> str:
    """Return the valid document with some texts replaced. Each text must occur once."""
    text = BASE
    for old, new in replace.items():
        assert BASE.count(old) == 1, old
        text = text.replace(old, new)
    return text


BASE = (FOLDER / "base.yaml").read_text()
PATCHES = yaml.safe_load((FOLDER / "patches.yaml").read_text())
FILES = {file.stem: file.read_text() for file in FOLDER.glob("*.yaml") if file.stem not in ("base", "patches")}
BROKEN = {
    **{name: (_patched(patch["replace"]), patch["expect"]) for name, patch in PATCHES.items()},
    **{name: (text, re.findall("(?m)^# expect: (.*)$", text)) for name, text in FILES.items()},
}


def test_there_are_enough_broken_files() -> None:
    assert len(BROKEN) >= 30


@pytest.mark.parametrize(
    ("members", "least"),
    [
        (r"source\.fields\[\d+\]\.(path|from)", 15),
        (r"source\.fields\[\d+\]\.(type|format|zone|scale|precision|default)", 20),
        (r"source\.format", 10),
        (r"lookups", 10),
        (r"transform\.python", 10),
        (r"source\.kafka", 4),
        (r"source\.mqtt", 5),
        (r"source\.webhooks", 8),
        (r"source\.connectors", 8),
    ],
)
def test_there_are_enough_broken_files_about_each_group_of_members(members: str, least: int) -> None:
    names = [name for name, (_, expected) in BROKEN.items() if re.search(rf"(?m)^spec\.{members}", "\n".join(expected))]
    assert len(names) >= least


def _patterns(schema: dict[str, Any], path: str) -> Iterator[str]:
    """Yield the paths of texts that have a pattern."""
    if "pattern" in schema and "ms|s|m" not in schema["pattern"]:  # Durations have a separate error.
        yield path
    for name, member in schema.get("properties", {}).items():
        yield from _patterns(member, f"{path}.{name}")
    if "items" in schema:
        yield from _patterns(schema["items"], f"{path}[0]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _patterns(schema["additionalProperties"], f"{path}.any")


def test_each_member_with_a_pattern_has_a_specific_remedy() -> None:
    crd = yaml.safe_load((ROOT / "crds" / "analyticspipelines.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    paths = list(_patterns(schema, "spec"))
    assert len(paths) > 40
    assert [path for path in paths if not _remedy(path, "")] == []


def test_the_document_before_it_is_broken_is_valid() -> None:
    assert run(FOLDER / "base.yaml") == 0


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_validation_prints_a_line_for_each_error_of_a_broken_file(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, expected = BROKEN[name]
    file = tmp_path / f"{name}.yaml"
    file.write_text(text)
    code = run(file)
    lines = [line.removeprefix(f"{file}: ") for line in capsys.readouterr().out.splitlines()]
    assert code == 2
    assert expected
    assert len(lines) == len(expected), lines
    for wanted in expected:
        assert [line for line in lines if line.startswith(wanted)], (wanted, lines)
    assert all("; " in line for line in lines), "every error has a remedy"


@pytest.mark.parametrize(("length", "faults"), [(1024, 0), (1025, 1)])
def test_the_default_of_a_group_column_has_the_limit_of_values_in_events(length: int, faults: int) -> None:
    text = _patched({"{name: customer, type: string, required: true}": "{name: customer, type: string, default: '@'}"})
    _, errors = check_document(load_documents(text.replace("@", "é" * (length // 2) + "x" * (length % 2)))[0])
    assert [fault.message for fault in errors] == [
        f"has {length} bytes, and a group column can hold at most 1024"
    ] * faults


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_valid_and_runnable(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(file) == 0
    out = capsys.readouterr()
    assert (out.out, out.err) == (f"{file}: ok\n", "")


def test_a_file_that_cannot_be_read_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"name: caf\xe9\n")
    assert run(tmp_path / "nothing.yaml", latin, tmp_path) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1].split(";")[0] for line in lines] == [
        "cannot be read",
        "is not UTF-8 text",
        "cannot be read",
    ]


def test_a_dash_validates_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(EXAMPLES[0].read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert run("-") == 0
    assert capsys.readouterr().out == "<stdin>: ok\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("y", True),
        ("N", False),
        ("on", True),
        ("Off", False),
        ("2013-01-01T00:00:00Z", "2013-01-01T00:00:00Z"),
        ("2013-01-01", "2013-01-01"),
        ("1:30", "1:30"),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("0x1F", 31),
        ("010", 8),
        ("5m", "5m"),
        ("~", None),
        ("'1'", "1"),
    ],
)
def test_scalars_are_read_as_kubectl_reads_them(text: str, expected: Any) -> None:
    value = load_documents(f"a: {text}\n")[0]["a"]
    assert (type(value), value) == (type(expected), expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [", "the flow is not closed"),
        ("\t a: 1", "a tab is used for indentation"),
        ("a: *b", "the alias is unknown"),
        ("a: !!python/object:os.system x", "the tag is not allowed"),
        ("a: !!int x", "the tag does not fit the value"),
        ("a: !!bool x", "the tag does not fit the value"),
        ("a: !!timestamp 2013-99-99", "the tag does not fit the value"),
        ("? [a]\n: b", "the key is a list"),
        ("a: &a [*a]", "the list contains itself"),
        ("[" * 5000, "the nesting is too deep"),
        ("a: " + "9" * 5000, "the integer is too long for Python"),
        ("a: \x00", "the text contains a NUL"),
        (
            "a0: &a0 [1,1,1,1,1,1,1,1]\n"
            + "\n".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)),
            "the aliases multiply",
        ),
        (
            "a0: &a0 {k: 1}\n"
            + "\n".join(f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 9)),
            "the merges multiply",
        ),
        ("a: 1\n" * 300_000, "the text is too long"),
    ],
    ids=lambda value: value[:12],
)
def test_a_text_that_is_no_document_is_refused(text: str, reason: str) -> None:
    with pytest.raises(DocumentError) as caught:
        load_documents(text)
    assert caught.value.faults, reason


def test_a_platform_may_allow_further_topic_prefixes() -> None:
    document = flights_with("spec.source.topic.name", "legacy.flights")
    assert [fault.path for fault in check_document(document)[1]] == ["spec.source.topic.name"]
    assert check_document(document, TopicLimits(topic_prefixes=("legacy.",)))[1] == []


@pytest.mark.parametrize(
    ("topic", "managed", "fault"),
    [
        ("crm.orders", False, None),
        ("clicks", False, None),
        ("legacy.flights", True, None),
        ("analytics.flights.events", True, None),
        ("crm.orders", True, "the platform allows reading this topic, but not managing it"),
        ("erp.orders", False, "add the topic to the platform's list of readable topics, TIDEMILL_READABLE_TOPICS"),
        # A pattern does not include results of pipelines. Their names must be listed.
        ("crm.orders.results", False, "add the topic to the platform's list of readable topics"),
        ("bank.loans.anomalies", False, None),
        ("analytics.tidemill-connect-1a-configs", False, "the topic belongs to Kafka Connect workers"),
        ("crm.tidemill-connect-1a-offsets", True, "the topic belongs to Kafka Connect workers"),
    ],
)
def test_topics_of_other_owners_are_readable_if_the_platform_lists_them(
    topic: str, managed: bool, fault: str | None
) -> None:
    limits = TopicLimits(("legacy.",), ("crm.*", "clicks", "bank.loans.anomalies"))
    document = flights_with("spec.source.topic.name", topic)
    document["spec"]["source"]["topic"]["managed"] = managed
    faults = [str(found) for found in check_document(document, limits)[1]]
    assert (faults == []) if fault is None else (len(faults) == 1 and fault in faults[0])


def test_the_list_of_readable_topics_does_not_apply_to_other_clusters() -> None:
    document = flights_with("spec.source.topic.name", "bank.loans.results")
    document["spec"]["source"] |= {"kafka": {"bootstrapServers": "other:9092"}}
    document["spec"]["source"]["topic"]["managed"] = False
    assert check_document(document)[1] == []


@pytest.mark.parametrize("kafka", [{}, {"bootstrapServers": ""}, {"bootstrapServers": "other:9092", "secretRef": "x"}])
def test_an_invalid_cluster_causes_no_error_of_the_topic(kafka: dict[str, Any]) -> None:
    document = flights_with("spec.source.topic.name", "crm.orders")
    document["spec"]["source"] |= {"kafka": kafka}
    document["spec"]["source"]["topic"]["managed"] = False
    assert [fault.path.startswith("spec.source.kafka") for fault in check_document(document)[1]] == [True]


def test_null_members_count_as_absent() -> None:
    """Kubernetes removes null members."""
    assert check_document(flights_with("spec.processor", None))[1] == []
    assert [fault.path for fault in check_document(flights_with("spec.aggregations", None))[1]] == ["spec.aggregations"]


@pytest.mark.parametrize(
    ("path", "value", "expected", "reason"),
    [
        (
            "spec.source.fields.5.type",
            "nmber",
            ["spec.source.fields[5].type"],
            "the field's type is unknown, and its uses are not checked",
        ),
        (
            "spec.source.fields.5.name",
            True,
            ["spec.source.fields[5].name"],
            "the field's name is unreadable, and references may mean it",
        ),
        ("spec.source.fields", "none", ["spec.source.fields"], "there are no fields, and references are not checked"),
        (
            "spec.transform.derive.0.expression",
            "dep_delay >",
            ["spec.transform.derive[0].expression"],
            "the uses of an invalid expression are not checked",
        ),
        ("spec.aggregations.0.name", 7, ["spec.aggregations[0].name"], "the anomaly rule may mean this aggregation"),
        (
            "spec.aggregations.0.metrics.1.function",
            "x",
            ["spec.aggregations[0].metrics[1].function"],
            "the metric of the anomaly rule exists",
        ),
        ("spec.aggregations.0.window.size", "x", ["spec.aggregations[0].window.size"], "retention is not compared"),
    ],
)
def test_an_error_causes_no_further_errors(path: str, value: Any, expected: list[str], reason: str) -> None:
    assert [fault.path for fault in check_document(flights_with(path, value))[1]] == expected, reason


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["", "1h", "0s", "9999999d", "count", "\ud800", "\0", "a" * 5000, "dep_delay > 1", "((((", "closed", "carrier"]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=8), st.booleans(), st.integers()), inner, max_size=3),
    ),
    max_leaves=8,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    all_places = [at] if at else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in items:
        all_places += places(member, (*at, key))
    return all_places


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(places(FLIGHTS)), st.sampled_from(["set", "drop", "add", "repeat"]), VALUES),
        min_size=1,
        max_size=4,
    )
)
def test_checking_a_mutated_document_never_raises(changes: list[tuple[tuple[Any, ...], str, Any]]) -> None:
    document: Any = copy.deepcopy(FLIGHTS)
    for place, how, value in changes:
        target = document
        try:
            for step in place[:-1]:
                target = target[step]
            if how == "set":
                target[place[-1]] = value
            elif how == "drop":
                del target[place[-1]]
            elif how == "add" and isinstance(target, dict):
                target[str(value)[:9]] = value
            elif isinstance(target, list):
                target.append(target[place[-1]])
        except (KeyError, IndexError, TypeError):
            continue
    pipeline, faults = check_document(document)
    assert (pipeline is None) == bool(faults)
    for fault in faults:
        line = str(fault)
        assert "\n" not in line
        assert line.encode()


@given(VALUES)
def test_checking_any_value_never_raises(value: Any) -> None:
    pipeline, faults = check_document(value)
    assert pipeline is None
    assert faults
