"""Alerts watch what there is, name their pipeline and their runbook, and fire when they are to (`tests/alerts`)."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import runbooks
from running.prometheus import program

ROOT = Path(__file__).resolve().parents[3]
FILE = ROOT / "charts/tidemill/files/alerts.yaml"
RULES = [rule for group in yaml.safe_load(FILE.read_text())["groups"] for rule in group["rules"]]
TESTS = sorted((ROOT / "tests/alerts").glob("*.yaml"))
RUNBOOKS = ROOT / "docs/runbooks"
RUNBOOK_URL = "https://tidemill.dev/runbooks/"
OF_NO_PIPELINE = {"TidemillNoTargets", "TidemillOperatorGone", "TidemillNoLeader"}
Labels = dict[str, str]


def told(rule: dict[str, Any]) -> str:
    return "-".join([rule["alert"], *(value for name, value in rule["labels"].items() if name != "severity")])


def expected(alert: str) -> Iterator[list[Labels]]:
    """For each situation that is tried: the labels of all that is to fire."""
    for path in TESTS:
        for situation in yaml.safe_load(path.read_text())["tests"]:
            checks = [check for check in situation["alert_rule_test"] if check["alertname"] == alert]
            if checks:
                yield [item["exp_labels"] for check in checks for item in check["exp_alerts"]]


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_are_to(path: Path) -> None:
    run = subprocess.run(
        [program("promtool"), "test", "rules", str(path)], capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("rule", RULES, ids=told)
def test_an_alert_is_tried_where_it_fires_and_where_it_does_not(rule: dict[str, Any]) -> None:
    """In situations of their own: that it does not fire yet says little."""
    found = [[rule["labels"].items() <= labels.items() for labels in fired] for fired in expected(rule["alert"])]
    assert any(any(fired) for fired in found), "tests/alerts has no situation in which it fires"
    assert any(not any(fired) for fired in found), "tests/alerts has no situation in which it does not fire"


@pytest.mark.parametrize("rule", RULES, ids=told)
def test_an_alert_has_a_page_and_names_its_pipeline(rule: dict[str, Any]) -> None:
    """One page an alert, by its name in lower case."""
    page = f"{rule['alert'].lower()}.md"
    assert rule["annotations"]["runbook_url"] == RUNBOOK_URL + page
    assert (RUNBOOKS / page).read_text().startswith(f"# {rule['alert']}\n")
    assert rule["labels"]["severity"] in ("info", "warning", "critical")
    if rule["alert"] not in OF_NO_PIPELINE:
        assert "$labels.pipeline" in rule["annotations"]["summary"]


@pytest.mark.parametrize("rule", RULES, ids=told)
def test_an_alert_watches_our_targets_alone(rule: dict[str, Any]) -> None:
    """Whoever else has a component `api` is not meant."""
    selectors = re.findall(r"\b[a-z_]+(?=\{)(\{[^}]*\})", rule["expr"])
    assert selectors
    assert [text for text in selectors if 'job="tidemill"' not in text] == []


def test_every_runbook_has_its_alert() -> None:
    names = {rule["alert"].lower() for rule in RULES}
    assert {page.stem for page in RUNBOOKS.glob("*.md")} - {"README"} == names


def test_the_list_of_runbooks_is_what_the_generator_prints() -> None:
    assert runbooks.render() == (RUNBOOKS / "README.md").read_text(), "run: make generate"
