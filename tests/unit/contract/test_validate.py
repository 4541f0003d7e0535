"""Every broken file names its faults, all of them and no others; nothing that is thrown at `check` makes it raise."""

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
from tidemill_contract.resource.rules import Limits
from tidemill_contract.resource.validate import _remedy, check
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


def put(path: str, value: Any) -> dict[str, Any]:
    """The flights example with one member replaced."""
    document: Any = copy.deepcopy(FLIGHTS)
    *steps, last = [int(s) if s.isdigit() else s for s in path.split(".")]
    target = document
    for step in steps:
        target = target[step]
    target[last] = value
    return dict(document)


def _patched(replace: dict[str, str]) -> str:
    """The good document with some texts replaced; each of them is there once."""
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
    found = [name for name, (_, expected) in BROKEN.items() if re.search(rf"(?m)^spec\.{members}", "\n".join(expected))]
    assert len(found) >= least


def _patterns(schema: dict[str, Any], path: str) -> Iterator[str]:
    """Paths of texts that have a pattern."""
    if "pattern" in schema and "ms|s|m" not in schema["pattern"]:  # durations have an error of their own
        yield path
    for name, member in schema.get("properties", {}).items():
        yield from _patterns(member, f"{path}.{name}")
    if "items" in schema:
        yield from _patterns(schema["items"], f"{path}[0]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _patterns(schema["additionalProperties"], f"{path}.any")


def test_each_member_with_a_pattern_has_a_remedy_of_its_own() -> None:
    crd = yaml.safe_load((ROOT / "crds" / "analyticspipelines.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    paths = list(_patterns(schema, "spec"))
    assert len(paths) > 40
    assert [path for path in paths if not _remedy(path, "")] == []


def test_the_document_that_is_broken_is_a_good_one() -> None:
    assert run(FOLDER / "base.yaml") == 0


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_file_gets_one_line_a_fault(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert all("; " in line for line in lines), "every fault has a remedy"


@pytest.mark.parametrize(("length", "faults"), [(1024, 0), (1025, 1)])
def test_the_default_of_a_group_column_is_as_short_as_what_events_may_have(length: int, faults: int) -> None:
    text = _patched({"{name: customer, type: string, required: true}": "{name: customer, type: string, default: '@'}"})
    _, found = check(load_documents(text.replace("@", "é" * (length // 2) + "x" * (length % 2)))[0])
    assert [fault.message for fault in found] == [
        f"has {length} bytes, and a group column can hold at most 1024"
    ] * faults


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_valid_and_runnable(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(file) == 0
    out = capsys.readouterr()
    assert (out.out, out.err) == (f"{file}: ok\n", "")


def test_files_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
        ("a: [", "flow not closed"),
        ("\t a: 1", "tab"),
        ("a: *b", "unknown alias"),
        ("a: !!python/object:os.system x", "foreign tag"),
        ("a: !!int x", "tag that does not fit"),
        ("a: !!bool x", "tag that does not fit"),
        ("a: !!timestamp 2013-99-99", "tag that does not fit"),
        ("? [a]\n: b", "a list as a key"),
        ("a: &a [*a]", "a list in itself"),
        ("[" * 5000, "too deep"),
        ("a: " + "9" * 5000, "an integer that Python will not read"),
        ("a: \x00", "a NUL"),
        (
            "a0: &a0 [1,1,1,1,1,1,1,1]\n"
            + "\n".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)),
            "aliases that multiply",
        ),
        (
            "a0: &a0 {k: 1}\n"
            + "\n".join(f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 9)),
            "merges that multiply",
        ),
        ("a: 1\n" * 300_000, "too long"),
    ],
    ids=lambda value: value[:12],
)
def test_texts_that_are_no_documents(text: str, reason: str) -> None:
    with pytest.raises(DocumentError) as caught:
        load_documents(text)
    assert caught.value.faults, reason


def test_a_platform_may_allow_more_topics() -> None:
    document = put("spec.source.topic.name", "legacy.flights")
    assert [fault.path for fault in check(document)[1]] == ["spec.source.topic.name"]
    assert check(document, Limits(topic_prefixes=("legacy.",)))[1] == []


@pytest.mark.parametrize(
    ("topic", "managed", "fault"),
    [
        ("crm.orders", False, None),
        ("clicks", False, None),
        ("legacy.flights", True, None),
        ("analytics.flights.events", True, None),
        ("crm.orders", True, "the platform allows reading this topic, but not managing it"),
        ("erp.orders", False, "add the topic to the platform's list of readable topics, TIDEMILL_READABLE_TOPICS"),
        # A pattern opens no results of pipelines. The name itself does.
        ("crm.orders.results", False, "add the topic to the platform's list of readable topics"),
        ("bank.loans.anomalies", False, None),
        ("analytics.tidemill-connect-1a-configs", False, "the topic belongs to Kafka Connect workers"),
        ("crm.tidemill-connect-1a-offsets", True, "the topic belongs to Kafka Connect workers"),
    ],
)
def test_topics_of_others_are_readable_if_the_platform_lists_them(topic: str, managed: bool, fault: str | None) -> None:
    limits = Limits(("legacy.",), ("crm.*", "clicks", "bank.loans.anomalies"))
    document = put("spec.source.topic.name", topic)
    document["spec"]["source"]["topic"]["managed"] = managed
    faults = [str(found) for found in check(document, limits)[1]]
    assert (faults == []) if fault is None else (len(faults) == 1 and fault in faults[0])


def test_the_list_of_the_platform_is_not_about_other_clusters() -> None:
    document = put("spec.source.topic.name", "bank.loans.results")
    document["spec"]["source"] |= {"kafka": {"bootstrapServers": "other:9092"}}
    document["spec"]["source"]["topic"]["managed"] = False
    assert check(document)[1] == []


@pytest.mark.parametrize("kafka", [{}, {"bootstrapServers": ""}, {"bootstrapServers": "other:9092", "secretRef": "x"}])
def test_a_cluster_that_cannot_be_read_is_still_another_cluster(kafka: dict[str, Any]) -> None:
    document = put("spec.source.topic.name", "crm.orders")
    document["spec"]["source"] |= {"kafka": kafka}
    document["spec"]["source"]["topic"]["managed"] = False
    assert [fault.path.startswith("spec.source.kafka") for fault in check(document)[1]] == [True]


def test_null_members_are_as_good_as_absent() -> None:
    """Kubernetes drops them."""
    assert check(put("spec.processor", None))[1] == []
    assert [fault.path for fault in check(put("spec.aggregations", None))[1]] == ["spec.aggregations"]


@pytest.mark.parametrize(
    ("path", "value", "expected", "reason"),
    [
        (
            "spec.source.fields.5.type",
            "nmber",
            ["spec.source.fields[5].type"],
            "the field's type is unknown: uses are not judged",
        ),
        (
            "spec.source.fields.5.name",
            True,
            ["spec.source.fields[5].name"],
            "its name is unreadable: references may mean it",
        ),
        ("spec.source.fields", "none", ["spec.source.fields"], "no fields at all: no reference can be judged"),
        (
            "spec.transform.derive.0.expression",
            "dep_delay >",
            ["spec.transform.derive[0].expression"],
            "its uses are not judged",
        ),
        ("spec.aggregations.0.name", 7, ["spec.aggregations[0].name"], "the anomaly may mean it"),
        (
            "spec.aggregations.0.metrics.1.function",
            "x",
            ["spec.aggregations[0].metrics[1].function"],
            "the anomaly's metric is there",
        ),
        ("spec.aggregations.0.window.size", "x", ["spec.aggregations[0].window.size"], "retention cannot be compared"),
    ],
)
def test_one_fault_is_told_once(path: str, value: Any, expected: list[str], reason: str) -> None:
    assert [fault.path for fault in check(put(path, value))[1]] == expected, reason


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
    found = [at] if at else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in items:
        found += places(member, (*at, key))
    return found


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(places(FLIGHTS)), st.sampled_from(["set", "drop", "add", "repeat"]), VALUES),
        min_size=1,
        max_size=4,
    )
)
def test_a_mutated_document_never_raises(changes: list[tuple[tuple[Any, ...], str, Any]]) -> None:
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
    pipeline, faults = check(document)
    assert (pipeline is None) == bool(faults)
    for fault in faults:
        line = str(fault)
        assert "\n" not in line
        assert line.encode()


@given(VALUES)
def test_any_value_at_all_never_raises(value: Any) -> None:
    pipeline, faults = check(value)
    assert pipeline is None
    assert faults
