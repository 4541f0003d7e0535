"""Tests of docs/recipes.md: its examples apply to the code, touch few files, and work."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import recipes

LIMITS = {
    "Add a function": 3,
    "Add a window kind": 4,
    "Add a detector": 3,
    "Add a spec field that processors read": 6,
    "Add an alert": 3,
    "Add a format of the API": 2,
    "Add a command": 3,
}
"""The number of files that a change may touch: product, tests and pages, without generated files."""
EXAMPLES = {
    "Add a function": "filled",
    "Add a window kind": "overlapping",
    "Add a detector": "jump",
    "Add a spec field that processors read": "batchevents",
    "Add an alert": "slowreaders",
    "Add a format of the API": "tsv",
    "Add a command": "topics",
}
"""The word that the names of an example's tests contain."""
FILES = (
    "repository/followed_recipes.py",
    "repository/test_alerts.py",
    "api/test_api_formats.py",
    "processor/test_batches.py",
    "operator/cli/test_cli_main.py",
    "operator/cli/test_cli_topics.py",
    "processor/test_detectors.py",
    "contract/test_kinds.py",
    "operator/passes/test_spec_edits.py",
)
"""Test modules that test the examples, or all elements of a kind, such as all alerts."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the outcome of each test in a copy of the code with all examples: empty if the test passed."""
    copy = recipes.Copy(tmp_path_factory.mktemp("recipes"))
    for title in LIMITS:
        for edit in recipes.edits(title):
            edit.apply(copy.folder)
    words = " or ".join([*EXAMPLES.values(), "every_", "kind"])
    tests = [f"tests/unit/{name}" for name in FILES]
    report = copy.folder / "report.xml"
    copy.python("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", "-k", words, *tests)
    cases = ElementTree.parse(report).iter("testcase")  # noqa: S314 - pytest has written the file
    return {f"{case.get('classname')}::{case.get('name')}": " ".join(part.tag for part in case) for case in cases}


def test_the_page_names_the_limit_of_files_of_each_change() -> None:
    assert recipes.promised() == LIMITS


@pytest.mark.parametrize("title", LIMITS)
def test_an_example_touches_few_files(title: str) -> None:
    """An example touches no generated file."""
    touched = {edit.path for edit in recipes.edits(title)}
    assert 0 < len(touched) <= LIMITS[title]
    assert touched & recipes.GENERATED == set()


@pytest.mark.parametrize("title", LIMITS)
def test_an_example_works(title: str, outcomes: dict[str, str]) -> None:
    """The tests of the example pass, and also the repository's tests of all elements of its kind."""
    results = {name: outcome for name, outcome in outcomes.items() if EXAMPLES[title] in name.lower()}
    assert any("followed_recipes" in name for name in results)
    assert {name: outcome for name, outcome in results.items() if outcome} == {}


def test_an_example_that_does_not_fit_the_code_is_reported(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("ONE = 1\n")
    edit = recipes.Edit("module.py", (("TWO = 2\n", "TWO = 3\n"),))
    with pytest.raises(AssertionError, match=r"module\.py is not as the example of docs/recipes\.md takes it"):
        edit.apply(tmp_path)
