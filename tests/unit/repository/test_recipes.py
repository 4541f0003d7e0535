"""The recipes of docs/recipes.md, followed: their examples apply, touch as few files as is said, and work."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("operator", "workloads", "hack", "tests/support", "docs")
FOLLOWED = """
import json, sys
from functions import table
from metric_draws import functions_for
from oracle.cells import metric_cell
from tidemill_contract.functions.partials import layout
from tidemill_contract.resource.kinds.metrics import METRICS
from tidemill_contract.resource.spec import AggregationSpec
from tidemill_contract.windows import answer_columns, answer_range
from tidemill_operator.resource.crd import render

metric = {"name": "m", "function": "filled", "field": "v"}
plan = layout(AggregationSpec.model_validate(
    {"name": "a", "window": {"type": "hopping", "size": "1m", "hop": "10s"}, "metrics": [metric]}), {"v": "string"})
print(json.dumps({
    "range": answer_range(METRICS.make(**metric), "string"),
    "columns": [partial.column for partial in plan.partials],
    "answers": answer_columns(plan),
    "crd": "- filled" in render(),
    "page": "| `filled` | the share of events" in table(),
    "drawn": "filled" in functions_for("timestamp"),
    "right": metric_cell(metric, {"v": "string"}, [{"v": "x"}, {"v": None}], 1000).fits(0.5),
    "from": sys.modules["tidemill_contract"].__file__,
}))
"""


def section(title: str) -> str:
    """A recipe."""
    _, *parts = re.split(r"^## ", (ROOT / "docs" / "recipes.md").read_text(), flags=re.MULTILINE)
    return next(part for part in parts if part.startswith(f"{title}\n"))


def applied(recipe: str, folder: Path) -> list[str]:
    """Apply a recipe's example to a copy of the code; the files that it touches.

    Of a hunk only its text counts: its lines may have moved.
    """
    (diff,) = re.findall(r"^```diff\n(.*?)^```$", recipe, re.MULTILINE | re.DOTALL)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    touched = []
    for part in re.split(r"^--- a/.*\n", diff, flags=re.MULTILINE)[1:]:
        header, *hunks = re.split(r"^@@.*\n", part, flags=re.MULTILINE)
        path = header.strip().removeprefix("+++ b/")
        text = (folder / path).read_text()
        for hunk in hunks:
            lines = hunk.splitlines(keepends=True)
            before = "".join(line[1:] or "\n" for line in lines if line[0] in " -")
            after = "".join(line[1:] or "\n" for line in lines if line[0] in " +")
            assert text.count(before) == 1, f"{path} has changed; write the example of docs/recipes.md anew"
            text = text.replace(before, after)
        (folder / path).write_text(text)
        touched.append(path)
    return touched


def test_a_function_is_added_in_three_files(tmp_path: Path) -> None:
    """The rest follows: the enum, the CRD, the page, what is drawn, an answer."""
    assert len(applied(section("Add a function"), tmp_path)) <= 3
    packages = [
        tmp_path / "operator",
        *(tmp_path / "workloads").iterdir(),
        tmp_path / "hack",
        tmp_path / "tests/support",
    ]
    # The copy is not measured: its lines would count as code that no test runs.
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    environment = unmeasured | {"PYTHONPATH": os.pathsep.join(map(str, packages))}
    run = subprocess.run(
        [sys.executable, "-c", FOLLOWED], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert str(tmp_path) in found.pop("from")
    assert found == {
        "range": [0.0, 1.0],
        "columns": ["_count", "_n_v"],
        "answers": [["m", "number", '"_n_v"::double precision / nullif("_count", 0)']],
        **dict.fromkeys(("crd", "page", "drawn", "right"), True),
    }
