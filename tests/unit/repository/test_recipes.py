"""The recipes of docs/recipes.md, followed: their examples apply, touch as few files as is said, and work."""

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
"""How many files a change may take: product, tests and pages, without those that are generated."""
EXAMPLES = {
    "Add a function": "filled",
    "Add a window kind": "overlapping",
    "Add a detector": "jump",
    "Add a spec field that processors read": "batchevents",
    "Add an alert": "slowreaders",
    "Add a format of the API": "tsv",
    "Add a command": "topics",
}
"""The word in the names of all tests of an example."""
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
"""Where there are tests of examples, and of everything that there is of a sort."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What became of each test of the examples in a copy of the code that has all of them: empty, or what is wrong."""
    copy = recipes.Copy(tmp_path_factory.mktemp("recipes"))
    for title in LIMITS:
        for edit in recipes.edits(title):
            edit.apply(copy.folder)
    words = " or ".join([*EXAMPLES.values(), "every_", "kind"])
    tests = [f"tests/unit/{name}" for name in FILES]
    report = copy.folder / "report.xml"
    copy.python("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", "-k", words, *tests)
    cases = ElementTree.parse(report).iter("testcase")  # noqa: S314 - written by pytest just now
    return {f"{case.get('classname')}::{case.get('name')}": " ".join(part.tag for part in case) for case in cases}


def test_the_page_promises_what_a_change_may_take() -> None:
    assert recipes.promised() == LIMITS


@pytest.mark.parametrize("title", LIMITS)
def test_an_example_touches_few_files(title: str) -> None:
    """As many as are promised at most, and none that is generated."""
    touched = {edit.path for edit in recipes.edits(title)}
    assert 0 < len(touched) <= LIMITS[title]
    assert touched & recipes.GENERATED == set()


@pytest.mark.parametrize("title", LIMITS)
def test_an_example_works(title: str, outcomes: dict[str, str]) -> None:
    """Its own tests pass where it is applied, and those that the repository has of everything of its sort."""
    found = {name: outcome for name, outcome in outcomes.items() if EXAMPLES[title] in name.lower()}
    assert any("followed_recipes" in name for name in found)
    assert {name: outcome for name, outcome in found.items() if outcome} == {}


def test_a_hunk_that_no_longer_fits_is_told(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("ONE = 1\n")
    edit = recipes.Edit("module.py", (("TWO = 2\n", "TWO = 3\n"),))
    with pytest.raises(AssertionError, match=r"module\.py is not as the example of docs/recipes\.md takes it"):
        edit.apply(tmp_path)
