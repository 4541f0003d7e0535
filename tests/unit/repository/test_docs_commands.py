"""Tests that the commands, files, chart values, annotations and resources in the pages exist and are valid.

tests/integration/laptop/test_docs_session.py runs the commands for a laptop, tests/e2e/test_documented.py the others.
"""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from documented import ROOT, blocks, commands
from tidemill_operator.cli.main import build_parser
from tidemill_operator.resource import reference

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
PAGES = [page for page in PAGES if page.parent.name != "decisions"]
FOLDERS = "crds|charts|helm|config|hack|tests|docs|operator|workloads"
CRD = yaml.safe_load((ROOT / "crds" / "analyticspipelines.yaml").read_text())["spec"]["names"]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def spans(page: Path) -> list[str]:
    """Return the code spans in the text of a page, outside of code blocks."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def subcommands() -> dict[str, argparse.ArgumentParser]:
    (action,) = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(action.choices)


def words(command: str) -> list[str]:
    try:
        return shlex.split(command.removeprefix("$ "), comments=True)
    except ValueError:  # The span is text that only begins like a command.
        return command.split()


def values(chart: str) -> Any:
    return yaml.safe_load((ROOT / "charts" / chart / "values.yaml").read_text())


def has(tree: Any, path: str) -> bool:
    """Return whether a chart has a value. Users may set any value below a map without members."""
    for part in path.split("."):
        if tree == {} or not isinstance(tree, dict):
            return tree == {}
        if part not in tree:
            return False
        tree = tree[part]
    return True


@pages
def test_commands_of_tidemill_are_valid(page: Path) -> None:
    """The parser accepts commands in blocks. Commands in the text name existing subcommands and options."""
    for command in commands(page):
        if re.match(r"(?:\$ )?(?:\.venv/bin/)?tidemill ", command):
            build_parser().parse_args(words(command)[1:])
    known = subcommands()
    for span in spans(page):
        if not re.match(r"(?:\.venv/bin/)?tidemill [a-z]", span):
            continue
        name, *rest = words(span)[1:]
        assert name in known, span
        options = {word.partition("=")[0] for word in rest if word.startswith("--")}
        assert options - set(known[name]._option_string_actions) == set(), span


@pages
def test_files_that_are_named_with_their_folder_exist(page: Path) -> None:
    named = {word for command in commands(page) for word in words(command)} | set(spans(page))
    paths = {m[0] for text in named if (m := re.fullmatch(rf"(?:{FOLDERS})/[\w./-]+", text))}
    assert {path for path in paths if not (ROOT / path).exists() and "…" not in path} == set()


@pages
def test_charts_and_values_of_charts_exist(page: Path) -> None:
    """Values are named in `helm … --set`, and in the text of DEPLOYMENT.md."""
    chart = values("tidemill")
    settings = [
        setting.partition("=")[0]
        for command in commands(page)
        if command.startswith("helm ")
        for before, setting in zip(words(command), words(command)[1:], strict=False)
        if before == "--set"
    ]
    assert [path for path in settings if not has(chart, path)] == []
    if page.name == "DEPLOYMENT.md":
        heads = "|".join(key for key, value in chart.items() if isinstance(value, dict))
        dotted = [m[1] for span in spans(page) if (m := re.match(rf"((?:{heads})\.[A-Za-z.]+)(?:: |$)", span))]
        assert len(dotted) > 5
        assert [path for path in dotted if not has(chart, path)] == []
    assert [
        path
        for command in commands(page)
        if command.startswith("helm ")
        for path in re.findall(r"\bcharts/\S+", command)
        if not (ROOT / path / "Chart.yaml").exists()
    ] == []


@pages
def test_commands_of_kubectl_name_existing_resources_annotations_and_namespaces(page: Path) -> None:
    """The page creates a namespace before it applies a resource in the namespace."""
    resource_names = {CRD["plural"], CRD["singular"], *CRD["shortNames"]}
    created: set[str] = set()
    for command in commands(page):
        if not command.startswith("kubectl "):
            continue
        arguments = words(command)
        if arguments[1:3] == ["create", "namespace"]:
            created.add(arguments[3])
        if arguments[1] in ("annotate", "wait"):
            assert {word.partition("/")[0] for word in arguments} & resource_names, command
        annotated = {word.partition("=")[0] for word in arguments if word.startswith("tidemill.dev/")}
        assert annotated <= set(reference.ANNOTATIONS), command
        if arguments[1] == "apply":
            file = next(word for word in arguments if word.endswith(".yaml"))
            namespaces = {doc["metadata"]["namespace"] for doc in yaml.safe_load_all((ROOT / file).read_text())}
            assert namespaces <= created, command


@pages
def test_complete_resources_in_pages_are_valid(page: Path) -> None:
    from tidemill_contract.resource.validate import check_document

    for block in blocks(page):
        if block.language == "yaml" and "kind: AnalyticsPipeline" in block.text:
            assert check_document(yaml.safe_load(block.text))[1] == []
