"""The recipes of docs/recipes.md: their promises, the edits of their examples, and a copy of the code to apply them to.

An example is a diff. The line numbers of its hunks are ignored, because lines may have moved.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "recipes.md"
COPIED = ("charts", "config", "crds", "docs", "hack", "operator", "tests", "workloads")
PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["src"]
GENERATED = frozenset(
    word.rstrip(";")
    for before, word in pairwise((ROOT / "hack/generate.sh").read_text().split())
    if before != "cat" and re.fullmatch(r"[\w-]+/[\w./-]+\.(?:md|yaml|js);?", word)
)
"""Files that `make generate` writes."""


@dataclass(frozen=True)
class Edit:
    """The edit of one file by an example.

    Attributes:
        path: the file, relative to the root of the repository.
        hunks: pairs of a text that the file has once and its replacement. The text is empty for a new file.
    """

    path: str
    hunks: tuple[tuple[str, str], ...]

    def apply(self, folder: Path) -> None:
        """Change or create the file below a folder."""
        file = folder / self.path
        text = file.read_text() if file.exists() else ""
        for before, after in self.hunks:
            assert (text.count(before) == 1) if before else not text, (
                f"{self.path} is not as the example of docs/recipes.md takes it: update the example"
            )
            text = text.replace(before, after) if before else after
        file.write_text(text)


def promised() -> dict[str, int]:
    """Return the largest number of files that each recipe may change, from the page's table."""
    titles = {_anchor(title): title for title in re.findall(r"^## (.*)$", PAGE.read_text(), re.MULTILINE)}
    rows = re.findall(r"^\| \[[^]]+\]\(#([\w-]+)\) \| (\d+) \|", PAGE.read_text(), re.MULTILINE)
    return {titles[anchor]: int(number) for anchor, number in rows}


def edits(title: str) -> list[Edit]:
    """Return the edits of a recipe's example, one for each file."""
    _, *parts = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    recipe = next(part for part in parts if part.startswith(f"{title}\n"))
    diffs = re.findall(r"^```diff\n(.*?)^```$", recipe, re.MULTILINE | re.DOTALL)
    return [_edit(part) for diff in diffs for part in re.split(r"^--- .*\n", diff, flags=re.MULTILINE)[1:]]


class Copy:
    """A copy of the code that a test changes and runs.

    Args:
        folder: the folder of the copy.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in COPIED:
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        shutil.copy(ROOT / "pyproject.toml", folder)

    def python(self, *arguments: str) -> None:
        """Run Python with the packages of the copy.

        Raises:
            AssertionError: if Python exits with another status than 0.
        """
        packages = os.pathsep.join(str(self.folder / name) for name in PACKAGES)
        # Coverage of the copy must not count for the code itself.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        run = subprocess.run(
            [sys.executable, *arguments],
            env=inherited | {"PYTHONPATH": packages},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert run.returncode == 0, run.stdout + run.stderr


def _anchor(title: str) -> str:
    return re.sub(r"[^\w-]", "", title.lower().replace(" ", "-"))


def _edit(part: str) -> Edit:
    header, *hunks = re.split(r"^@@.*\n", part, flags=re.MULTILINE)
    return Edit(header.strip().removeprefix("+++ b/"), tuple(map(_hunk, hunks)))


def _hunk(text: str) -> tuple[str, str]:
    """Return the text before and after. An empty line of the diff is an empty line of both texts."""
    lines = [line if line.strip() else " \n" for line in text.splitlines(keepends=True)]
    before, after = ("".join(line[1:] for line in lines if line[0] in signs) for signs in (" -", " +"))
    return before, after
