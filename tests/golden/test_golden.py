"""Tests that the plans of the examples equal the committed files.

`REFRESH_GOLDEN=1 make unit ARGS="-k golden"` rewrites the files; read the diff before committing it.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tidemill_contract.resource.documents import load_documents
from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_operator.plan import describe
from tidemill_operator.plan.build import build_plan
from tidemill_operator.plan.postgres import sql
from tidemill_operator.settings import Platform

FOLDER = Path(__file__).parent
EXAMPLES = sorted((FOLDER.parents[1] / "crds" / "examples").glob("*.yaml"))
NAMES = ("topics.yaml", "schema.sql", "workloads.yaml", "config.json")


def _yaml(data: Any) -> str:
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)


def rendered(example: Path) -> dict[str, str]:
    """Return the files of an example's plan on the default local platform, by name."""
    (document,) = load_documents(example.read_text())
    plan = build_plan(AnalyticsPipeline.model_validate(document), Platform(), 1)
    return {
        "topics.yaml": _yaml([describe.describe_topic(topic) for topic in plan.topics]),
        "schema.sql": sql.script(plan.schema),
        "workloads.yaml": _yaml([describe.describe_workload(workload) for workload in plan.workloads]),
        "config.json": plan.config + "\n",
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_the_plan_of_an_example_equals_the_committed_file(example: Path, name: str) -> None:
    path, text = FOLDER / example.stem / name, rendered(example)[name]
    if os.environ.get("REFRESH_GOLDEN") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    committed = path.read_text() if path.exists() else ""
    changed = "".join(difflib.unified_diff(committed.splitlines(True), text.splitlines(True), "committed", "planned"))
    if changed:
        pytest.fail(
            f"{path.relative_to(FOLDER)} differs; if that is intended, set REFRESH_GOLDEN=1:\n{changed}",
            pytrace=False,
        )


def test_the_committed_files_are_those_of_the_examples() -> None:
    """No file remains of an example that was deleted."""
    others = ("__pycache__", "kubernetes")
    committed = {f"{path.parent.name}/{path.name}" for path in FOLDER.glob("*/*") if path.parent.name not in others}
    assert {f"{example.stem}/{name}" for example in EXAMPLES for name in NAMES} == committed


def test_no_golden_file_holds_a_secret() -> None:
    """Plans name files of secrets, such as `writer.json`, and contain no password."""
    text = "".join(path.read_text() for path in FOLDER.glob("*/*.*") if path.parent.name != "__pycache__").lower()
    assert "writer.json" in text
    assert "password" not in text
